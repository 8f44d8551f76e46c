"""The project's pages: their programs, links and headings."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

FENCE = re.compile(r"^```(?P<kind>\w*)[^\n]*\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!`)\[[^\]]*\]\((?P<target>[^)\s]+)\)")
HEADING = re.compile(r"^#+ +(?P<text>.+)$", re.MULTILINE)
ELSEWHERE = ("http://", "https://", "mailto:")


def pages() -> list[Path]:
    """Every page for people, in a stable order."""
    return sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def name_of(page: Path) -> str:
    """Path of a page within the project."""
    return page.relative_to(ROOT).as_posix()


@dataclass(frozen=True)
class Block:
    """A fenced block, and the line of its page where it begins."""

    page: Path
    line: int
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{name_of(self.page)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """Fenced blocks of a page."""
    text = page.read_text()
    for found in FENCE.finditer(text):
        line = text.count("\n", 0, found.start("text")) + 1
        yield Block(page, line, found["kind"], found["text"])


def programs() -> list[Block]:
    """Blocks that are programs by themselves."""
    return [block for page in pages() for block in blocks(page) if block.kind == "python"]


def links(page: Path) -> list[str]:
    """Targets of a page's links that lie within the project."""
    prose = FENCE.sub("", page.read_text())
    targets = [found["target"] for found in LINK.finditer(prose)]
    return [target for target in targets if not target.startswith(ELSEWHERE)]


def anchors(page: Path) -> set[str]:
    """Names under which a page's headings can be linked to, as GitHub makes them."""
    prose = FENCE.sub("", page.read_text())
    texts = [re.sub(r"[^\w\- ]", "", found["text"].lower()) for found in HEADING.finditer(prose)]
    return {text.strip().replace(" ", "-") for text in texts}


def is_broken(page: Path, target: str) -> bool:
    """Tell whether a link leads nowhere."""
    path, _, anchor = target.partition("#")
    aim = (page.parent / path).resolve() if path else page
    if not aim.exists():
        return True
    return bool(anchor) and aim.suffix == ".md" and anchor not in anchors(aim)
