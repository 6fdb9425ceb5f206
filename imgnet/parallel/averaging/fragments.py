"""Which part of the model is averaged after which step: pure numbers, the same on all workers."""

from collections.abc import Iterator
from dataclasses import dataclass

from imgnet.config import AveragingConfig
from imgnet.config.schemas import Count, WholeNumber


@dataclass
class FragmentsConfig(AveragingConfig):
    """Parts of the model that take turns."""

    every: Count = 100
    """Local steps between two averages of the same part."""
    fragments: Count = 4
    """Parts, each made of every so manieth message; ``every`` is a multiple of it."""
    delay_steps: WholeNumber = 5
    """Steps in which an average is under way, fewer than ``every / fragments``."""


def fragment_problems(averaging: FragmentsConfig) -> Iterator[str]:
    """What is wrong with them, one line each."""
    every, number, delay = averaging.every, averaging.fragments, averaging.delay_steps
    if every % number:
        yield f"averaging.every={every} must be a multiple of averaging.fragments={number}"
    elif delay >= every // number:
        yield (
            f"averaging.delay_steps={delay} must be below averaging.every / averaging.fragments = {every // number}: "
            "one fragment is under way at a time"
        )


@dataclass(frozen=True)
class Fragments:
    """Averages of one fragment after the other, numbered from 0; steps are those that the run has made."""

    number: int
    """P. Fragments take turns."""
    every: int
    """H: steps from one average of a fragment to its next, a multiple of P."""
    delay: int
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


def fragments_of(averaging: FragmentsConfig) -> Fragments:
    """What a run asks for."""
    return Fragments(averaging.fragments, averaging.every, averaging.delay_steps)
