"""Keys of the terminal, one at a time and without an echo."""

import asyncio
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def pressed_keys(press: Callable[[str], None]) -> Iterator[bool]:
    """Call `press` with each key during the block; yield whether there is a keyboard."""
    try:
        import termios  # noqa: PLC0415 -- not there on Windows
        import tty  # noqa: PLC0415 -- as above
    except ImportError:
        yield False
        return
    if not sys.stdin.isatty():
        yield False
        return
    number, loop = sys.stdin.fileno(), asyncio.get_running_loop()
    before = termios.tcgetattr(number)
    tty.setcbreak(number)  # Ctrl-C still ends the program

    def read() -> None:
        for key in os.read(number, 64).decode(errors="replace"):
            press(key)

    loop.add_reader(number, read)
    try:
        yield True
    finally:
        loop.remove_reader(number)
        termios.tcsetattr(number, termios.TCSADRAIN, before)
