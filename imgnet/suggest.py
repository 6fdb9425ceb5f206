"""What a line that refuses a name says of the names that are known."""

from collections.abc import Collection
from difflib import get_close_matches

GONE = {"topology.every": "workers rest between averages with averaging=local averaging.every=K averaging.overlap=true"}
"""Keys that there were, and what says the same now."""


def nearest(name: str, known: Collection[str]) -> str:
    """``did you mean 'x'?`` or the known names, for the end of a line that refuses ``name``."""
    return did_you_mean(name, known) or f"known: {', '.join(sorted(known))}"


def did_you_mean(name: str, known: Collection[str]) -> str:
    """``did you mean 'x'?``; empty where no known name is near."""
    close = get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else ""


def unknown_key(key: str, known: Collection[str]) -> str:
    """The line for a key that its place does not have.

    Args:
        key: from the root on, such as ``optimizer.betaz``.
        known: the keys of that place; empty where it has none, or where they cannot be named.
    """
    if key in GONE:
        return f"there is no {key} any more; {GONE[key]}"
    parent, _, name = key.rpartition(".")
    where = f"in {parent}, " if parent else ""
    return f"unknown key {key!r}; {where}{nearest(name, known)}" if known else f"unknown key {key!r}"
