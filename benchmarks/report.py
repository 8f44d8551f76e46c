"""What a benchmark says: figures, ratios, the targets of the ratios, and whether they are met."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median, quantiles


@dataclass
class Report:
    """Figures are for people; each ratio may have a target, at least or at most a number."""

    name: str
    figures: dict[str, object] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)
    targets: dict[str, str] = field(default_factory=dict)

    def ratio(
        self,
        name: str,
        value: float,
        *,
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> None:
        """Add a ratio with its target."""
        self.ratios[name] = round(value, 3)
        if at_least is not None:
            self.targets[name] = f">= {at_least:g}"
        if at_most is not None:
            self.targets[name] = f"<= {at_most:g}"

    def as_dict(self) -> dict[str, object]:
        """Return the object that `--json` prints."""
        met = all(is_met(self.ratios[name], target) for name, target in self.targets.items())
        return {
            "name": self.name,
            "figures": self.figures,
            "ratios": self.ratios,
            "targets": self.targets,
            "met": met,
        }


def is_met(value: float, target: object) -> bool:
    """Tell whether a ratio meets its target, such as `>= 0.9` or `<= 1.5`."""
    sign, _, number = str(target).partition(" ")
    return value >= float(number) if sign == ">=" else value <= float(number)


def spread(seconds: list[float]) -> Mapping[str, float]:
    """Return the median and the 99th percentile of durations, in milliseconds."""
    return {
        "p50_ms": round(median(seconds) * 1000, 3),
        "p99_ms": round(quantiles(seconds, n=100)[98] * 1000, 3),
    }
