"""Parts of the model that take turns: what a run may be told of them."""

from collections.abc import Iterator
from dataclasses import dataclass

from imgnet.config import AveragingConfig
from imgnet.config.schemas import Count, WholeNumber
from imgnet.parallel.averaging.rhythm import Fragments, Rhythm, Rhythms


@dataclass
class FragmentsConfig(AveragingConfig):
    """Parts of the model that take turns."""

    every: Count = 100
    """Local steps between two averages of the same part."""
    fragments: Count = 4
    """Parts, each made of every so manieth message; ``every`` is a multiple of it."""
    delay_steps: WholeNumber = 5
    """Steps in which an average is under way, fewer than ``every / fragments``."""

    def rhythms(self, *_: object) -> Rhythms:
        """Averages that the step waits for in which they are due."""
        yield 0.0, Rhythm(fragments_of(self), waits=True)


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


def fragments_of(averaging: FragmentsConfig) -> Fragments:
    """What a run asks for."""
    return Fragments(averaging.fragments, averaging.every, averaging.delay_steps)
