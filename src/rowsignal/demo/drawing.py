"""Drawing in a terminal: sentences, and a live picture below them."""

from typing import Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text


class Lines:
    """Prints one line for each sentence."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing."""

    def tell(self, sentence: str) -> None:
        """Print a sentence."""
        self._console.print(sentence, markup=False, highlight=False, soft_wrap=True)


class Picture:
    """Draws a picture again and again, below the sentences."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False)
        self._console = console

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def tell(self, sentence: str) -> None:
        """Print a sentence above the picture."""
        self._console.print(Text.assemble(("✓ ", "green"), sentence), soft_wrap=True)

    def draw(self, picture: RenderableType) -> None:
        """Draw the picture in place of the last one."""
        self._live.update(picture, refresh=True)
