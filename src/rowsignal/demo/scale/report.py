"""The figures of a demonstration with relays and gateways."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rowsignal.demo.scale.verdict import Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleReport:
    """The final report; counts of changes are sums over all readers, but `written`."""

    postgres_version: str
    nats_version: str
    seconds: float
    written: int
    readers: int
    hops: int
    resets: int
    kills: Mapping[str, int]
    verdict: Verdict

    @property
    def is_good(self) -> bool:
        """Tell whether each reader got every change once and in order, or was told of a gap."""
        return self.written > 0 and self.verdict.received > 0 and not self.verdict.faults

    def to_dict(self) -> dict[str, Any]:
        """Return the report for JSON."""
        figures = asdict(self)
        verdict = figures.pop("verdict")
        verdict.pop("waiting")
        return {**figures, **verdict, "is_good": self.is_good}
