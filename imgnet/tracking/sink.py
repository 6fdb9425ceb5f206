"""What every service takes the rows of a run through."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from enum import Enum


class Kind(Enum):
    """What a row tells of. The value stands before the names of its numbers."""

    epoch = ""
    step = "step/"
    system = "system/"


class Sink(ABC):
    """Takes the rows of a run. Used on rank 0 alone, by one thread."""

    @abstractmethod
    def log(self, kind: Kind, row: Mapping[str, float], step: int) -> None:
        """Take a row. Waits for no network.

        Args:
            kind: what it tells of.
            row: numbers by their names.
            step: optimizer steps made; does not fall from one row to the next.
        """

    @abstractmethod
    def close(self, *, failed: bool) -> None:
        """Hand over what is left."""
