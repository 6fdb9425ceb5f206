"""Local steps: workers train by themselves for a while, then average before they go on."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, final

from imgnet.config import RunConfig
from imgnet.parallel.averaging.beat import Beat
from imgnet.parallel.averaging.intervals import Intervals, IntervalsConfig, intervals_of, rhythms_of
from imgnet.parallel.averaging.method import MakeMethod, Method
from imgnet.parallel.averaging.rhythm import Rhythms
from imgnet.parallel.averaging.way import Way, no_average_before_an_update, starts_in_time

if TYPE_CHECKING:
    from imgnet.parallel.mixing import Mixer


@dataclass
class LocalStepsConfig(IntervalsConfig):
    """Each worker trains by itself for some steps; after them it averages."""

    overlap: bool = False
    """Whether an average is under way during the next forward and backward pass; else the pass waits for it."""

    def rhythms(self, config: RunConfig, steps_per_epoch: Callable[[], int]) -> Rhythms:
        """See :class:`Way`."""
        return rhythms_of(self, config, steps_per_epoch, waits=not self.overlap)


@final
class Local(Method):
    """``x <- x - lr u`` H times, then ``x <- W x``, which the next forward pass waits for; with ``overlap`` its update.

    Without overlap H = 1 among all workers is AllReduce for every update that is linear in the gradient (SGD, momentum,
    Nesterov, decay); with it H = 1 is ``EveryStep``. Optimizer states stay each worker's own.
    """

    def __init__(self, mixer: "Mixer", intervals: Intervals, *, overlap: bool = False) -> None:
        super().__init__(mixer)
        self._beat = Beat(mixer, intervals)
        self._overlap = overlap

    def before_step(self, step: int, lr: float) -> None:
        """See :meth:`Method.before_step`."""
        for averaging in () if self._overlap else self.averagings:
            averaging.finish()
        self._beat.begin(step, lr)

    def before_update(self, index: int) -> None:
        """See :meth:`Method.before_update`."""
        self.averagings[index].finish()

    def after_update(self, index: int) -> None:
        """See :meth:`Method.after_update`."""
        if (round_ := self._beat.due()) is not None:
            self.averagings[index].start(round_)

    def state(self) -> dict[str, Any]:
        """See :meth:`Method.state`."""
        return {"beat": self._beat.state()}

    def restore(self, state: dict[str, Any], num_steps: int) -> None:
        """See :meth:`Method.restore`."""
        self._beat.restore(state["beat"], num_steps)
        for index in range(len(self.blocks)):
            self.after_update(index)


def _make(averaging: LocalStepsConfig, config: RunConfig, steps_per_epoch: int) -> MakeMethod:
    return partial(Local, intervals=intervals_of(averaging, config, steps_per_epoch), overlap=averaging.overlap)


def _problems(averaging: LocalStepsConfig, config: RunConfig) -> Iterator[str]:
    yield from starts_in_time(averaging, config)
    if not averaging.overlap:
        yield from (f"{line} without averaging.overlap" for line in no_average_before_an_update(averaging, config))


WAY = Way(("local",), LocalStepsConfig, _make, _problems, LocalStepsConfig.rhythms, LocalStepsConfig.averages_exactly)
