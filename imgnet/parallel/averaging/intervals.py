"""After which steps workers average: pure numbers, the same on all of them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from imgnet.config import AveragingConfig, RunConfig
from imgnet.config.schemas import Count, NotNegative, Positive, WholeNumber
from imgnet.optim.schedule import rate_of
from imgnet.parallel.averaging.rhythm import Fragments, Rhythm, Rhythms

LIKE = 1.25
"""Intervals whose lengths differ by this factor at most are predicted as if all had their mean."""


@dataclass
class IntervalsConfig(AveragingConfig):
    """When workers average that train by themselves for some steps."""

    every: Count = 8
    """Steps from one average to the next."""
    start_epoch: NotNegative = 0.0
    """Epochs in which every step ends with an exact average of all workers (post-local SGD, arXiv 1808.07217)."""
    qsr_alpha: NotNegative = 0.0
    """Above 0: ``max(every, (qsr_alpha / lr)^qsr_power)`` steps (quadratic synchronisation rule, arXiv 2310.14423)."""
    qsr_power: Positive = 2.0
    exact_every: WholeNumber = 0
    """Each so many averages is one of all workers (Gossip-PGA, Chen et al. 2021); 0: none is."""

    def averages_exactly(self) -> bool:
        """Whether all workers average now and then, whatever the topology."""
        return bool(self.start_epoch or self.exact_every)


@dataclass(frozen=True)
class Intervals:
    """Steps from one average to the next.

    Args:
        every: H, 1 or more.
        first_step: before it, every step ends with an exact average of all workers.
        qsr_alpha: the quadratic synchronisation rule (Gu et al. 2023, arXiv 2310.14423): H is never less than
            ``every``, and ``(qsr_alpha / lr)^qsr_power`` where that is more; 0: always ``every``. In the warm-up,
            whose small rates would ask for long intervals, lr is the rate that it leads up to.
        qsr_power: 2 for the quadratic rule.
        exact_every: each so many averages is one of all workers, whatever the topology (Gossip-PGA, Chen et al. 2021);
            0: none is.
        num_steps: of the run, whose last step ends an interval.
        warmup_steps: steps in which the rate rises.
        peak_lr: to this.
    """

    every: int
    num_steps: int
    first_step: int = 0
    qsr_alpha: float = 0.0
    qsr_power: float = 2.0
    exact_every: int = 0
    warmup_steps: int = 0
    peak_lr: float = 0.0

    def length(self, step: int, lr: float) -> int:
        """Steps of the interval that begins with ``step``, whose learning rate is ``lr``."""
        if step < self.first_step:
            return 1
        left = max(self.num_steps - step, 1)
        return min(max(self.every, self._by_rule(step, lr, left)), left)

    def _by_rule(self, step: int, lr: float, most: int) -> int:
        rate = self.peak_lr if step < self.warmup_steps else lr
        if self.qsr_alpha == 0:
            return 0
        return int(min((self.qsr_alpha / rate) ** self.qsr_power, most)) if rate > 0 else most

    def is_exact(self, step: int, number: int) -> bool:
        """Whether the average after ``step`` is one of all workers; ``number`` counts averages from 0."""
        return step < self.first_step or (self.exact_every > 0 and (number + 1) % self.exact_every == 0)


def intervals_of(averaging: IntervalsConfig, config: RunConfig, steps_per_epoch: int) -> Intervals:
    """The intervals that a run asks for."""
    return Intervals(
        averaging.every, config.epochs * steps_per_epoch, round(averaging.start_epoch * steps_per_epoch),
        averaging.qsr_alpha, averaging.qsr_power, averaging.exact_every,
        round(config.optimizer.warmup_epochs * steps_per_epoch), config.optimizer.lr,
    )  # fmt: skip


def rhythms_of(
    averaging: IntervalsConfig, config: RunConfig, steps_per_epoch: Callable[[], int], *, waits: bool
) -> Rhythms:
    """Exact averages in every step at first, then intervals; of the quadratic rule's, those alike together."""
    start = averaging.start_epoch
    if start > 0:
        yield 0.0, Rhythm(waits=waits, exact_every=1)
    if averaging.qsr_alpha == 0:
        yield start, Rhythm(Fragments(1, averaging.every), waits, averaging.exact_every)
        return
    per_epoch = steps_per_epoch()
    for step, length in _alike(_lengths(averaging, config, per_epoch)):
        yield step / per_epoch, Rhythm(Fragments(1, length), waits, averaging.exact_every)


def _lengths(averaging: IntervalsConfig, config: RunConfig, per_epoch: int) -> Iterator[tuple[int, int]]:
    """First step and steps of each interval after those of the start."""
    intervals = intervals_of(averaging, config, per_epoch)
    step = intervals.first_step
    while step < intervals.num_steps:
        length = intervals.length(step, rate_of(config.optimizer, step, config.epochs, per_epoch))
        yield step, length
        step += length


def _alike(lengths: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """First step and mean length of intervals one after the other that are about as long."""
    first, group = 0, list[int]()
    for step, length in lengths:
        if group and not 1 / LIKE <= length / group[0] <= LIKE:
            yield first, round(sum(group) / len(group))
            group = []
        if not group:
            first = step
        group.append(length)
    if group:
        yield first, round(sum(group) / len(group))
