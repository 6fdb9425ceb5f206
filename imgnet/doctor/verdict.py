"""What was found of one thing."""

from dataclasses import dataclass
from enum import Enum


class Level(Enum):
    """``warning``: runs work, but slower or with less than they could; ``error``: some run fails for it."""

    ok = "ok"
    warning = "warning"
    error = "error"


@dataclass(frozen=True)
class Verdict:
    """One line.

    Attributes:
        subject: what was looked at.
        level: how it is.
        found: in words and numbers.
        remedy: what to do; empty where nothing is to be done.
    """

    subject: str
    level: Level
    found: str
    remedy: str = ""

    @classmethod
    def ok(cls, subject: str, found: str) -> "Verdict":
        """Nothing is to be done."""
        return cls(subject, Level.ok, found)

    @classmethod
    def warning(cls, subject: str, found: str, remedy: str) -> "Verdict":
        """Runs work, not at their best."""
        return cls(subject, Level.warning, found, remedy)

    @classmethod
    def error(cls, subject: str, found: str, remedy: str) -> "Verdict":
        """Some run would fail."""
        return cls(subject, Level.error, found, remedy)
