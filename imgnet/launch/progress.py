"""How far a command has come that looks at many runs: a bar on a terminal, a line every few seconds elsewhere."""

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

WORTH_SHOWING = 20
"""So many runs take more than a moment."""
SILENCE_S = 2.0


def progress(runs: Sequence[T], done: str) -> Iterator[T]:
    """Yield the runs one by one, and say on stderr how many are behind.

    Args:
        runs: what is gone through.
        done: what is done with each, such as ``checked``.
    """
    if len(runs) < WORTH_SHOWING:
        yield from runs
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track

        yield from track(runs, f"runs {done}", console=Console(stderr=True), transient=True)
    else:
        yield from _with_lines(runs, done)


def _with_lines(runs: Sequence[T], done: str) -> Iterator[T]:
    said = time.monotonic()
    for number, run in enumerate(runs):
        if time.monotonic() - said > SILENCE_S:
            said = time.monotonic()
            sys.stderr.write(f"{done}: {number} of {len(runs)} runs\n")
        yield run
