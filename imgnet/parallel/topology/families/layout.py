"""What every family starts from, and the words in which they refuse."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from imgnet.parallel.topology.rounds import Round

Rounds = tuple[Round, ...]


@dataclass(frozen=True)
class Layout:
    """Two or more workers, and how many of them share a node (a divisor of ``world_size``)."""

    world_size: int
    workers_per_node: int

    @property
    def num_nodes(self) -> int:
        """Number of nodes."""
        return self.world_size // self.workers_per_node

    def workers(self, nodes: Sequence[int]) -> list[int]:
        """Ranks on ``nodes``."""
        return [node * self.workers_per_node + local for node in nodes for local in range(self.workers_per_node)]


Family = Callable[..., Rounds]
"""Takes a Layout and keyword-only options with defaults."""


def refuse_below(minimum: int, name: str, **options: int | None) -> None:
    """Raise ValueError where an option of topology ``name`` is given and too small."""
    for option, value in options.items():
        if value is not None and value < minimum:
            raise ValueError(f"topology={name} has {option}={value}; it must be {minimum} or more")


def refuse_share(name: str, **options: float | None) -> None:
    """Raise ValueError where an option of topology ``name`` is given and outside (0, 1)."""
    for option, value in options.items():
        if value is not None and not 0.0 < value < 1.0:
            raise ValueError(f"topology={name} has {option}={value}; it must be above 0 and below 1")
