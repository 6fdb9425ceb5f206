"""When averages start and are needed, as long as that does not change: what a prediction replays, as pure numbers."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from imgnet.config import RunConfig


@dataclass(frozen=True)
class Fragments:
    """Averages of one fragment after the other, numbered from 0; steps are those that the run has made."""

    number: int = 1
    """P. Fragments take turns."""
    every: int = 1
    """H: steps from one average of a fragment to its next, a multiple of P."""
    delay: int = 0
    """tau, in [0, H/P): steps in which an average is under way."""

    def blocks(self, average: int, num_blocks: int) -> range:
        """What an average is of: fragment p has blocks p, p + P, p + 2 P, ..."""
        return range(average % self.number, num_blocks, self.number)

    def round(self, average: int) -> int:
        """The number of an average among those of its fragment, which meets all rounds of the topology."""
        return average // self.number

    def due(self, average: int) -> int:
        """The step before which it is taken in; it starts ``delay`` steps earlier."""
        return (average + 1) * (self.every // self.number)

    def starting(self, num_steps: int) -> int | None:
        """The average that starts when so many steps, 1 or more, have been made."""
        average, rest = divmod(num_steps + self.delay, self.every // self.number)
        return average - 1 if rest == 0 else None


@dataclass(frozen=True)
class Rhythm:
    """A part of a run in which averages come at even intervals; without arguments all of ``every_step``."""

    fragments: Fragments = Fragments()
    waits: bool = False
    """Whether the step in which an average is due waits for it as a whole; else only the update of its block does."""
    exact_every: int = 0
    """Each so many averages is one of all workers; 0: none is."""

    @property
    def num_steps(self) -> int:
        """After which it repeats itself, but for the topology's rounds."""
        return self.fragments.every * max(self.exact_every, 1)

    def is_exact(self, number: int) -> bool:
        """Whether a fragment's average 0, 1, 2, ... is one of all workers."""
        return self.exact_every > 0 and (number + 1) % self.exact_every == 0


Rhythms: TypeAlias = Iterator[tuple[float, Rhythm]]
"""Each from which epoch on, the first from 0 on."""
FindRhythms: TypeAlias = Callable[[Any, RunConfig, Callable[[], int]], Rhythms]
"""``(averaging, config, what tells the steps of an epoch)`` to the rhythms of a run."""


def in_every_step(*_: object) -> Rhythms:
    """Of ways that average behind each step."""
    yield 0.0, Rhythm()


def after_every_step(averaging: Any, *_: object) -> Rhythms:
    """Of ways that average in each step, behind the next one where ``averaging.overlap`` says so."""
    yield 0.0, Rhythm(waits=not averaging.overlap)
