"""An outer optimizer over any topology: DiLoCo, SlowMo and NoLoCo differ in topology, momentum and rate."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, final

from imgnet.config import RunConfig
from imgnet.config.schemas import Count
from imgnet.parallel.averaging.beat import Beat
from imgnet.parallel.averaging.intervals import Intervals
from imgnet.parallel.averaging.method import MakeMethod, Method
from imgnet.parallel.averaging.rhythm import Fragments, Rhythm, Rhythms
from imgnet.parallel.averaging.slow_weights import SlowWeights, SlowWeightsConfig
from imgnet.parallel.averaging.way import Way, no_average_before_an_update

if TYPE_CHECKING:
    from imgnet.parallel.mixing import Mixer


@dataclass
class OuterConfig(SlowWeightsConfig):
    """Local steps, after which a second optimizer moves slow weights towards the average."""

    every: Count = 50
    """Local steps before each step of the outer optimizer."""

    def rhythms(self, *_: object) -> Rhythms:
        """All wait after each interval."""
        yield 0.0, Rhythm(Fragments(1, self.every), waits=True)


@final
class Outer(Method):
    """Slow weights phi, from which H local steps lead to theta: phi moves towards W theta, and theta is phi again.

    The next forward pass waits for the average. An evaluation in between is of the mean of theta. Intervals are whole.
    """

    def __init__(self, mixer: "Mixer", intervals: Intervals, **of_slow_weights: Any) -> None:
        super().__init__(mixer)
        self._beat = Beat(mixer, intervals)
        self._slow_weights = SlowWeights(self.blocks, **of_slow_weights)

    def before_step(self, step: int, lr: float) -> None:
        """See :meth:`Method.before_step`."""
        if self._beat.due() is not None:
            for index, (block, averaging) in enumerate(zip(self.blocks, self.averagings, strict=True)):
                averaging.finish()
                block.copy_(self._slow_weights.move(index, block))
        self._beat.begin(step, lr)
        self._slow_weights.begin_step(lr)

    def before_update(self, index: int) -> None:
        """Nothing is under way."""

    def after_update(self, index: int) -> None:
        """See :meth:`Method.after_update`."""
        if (round_ := self._beat.due()) is not None:
            self.averagings[index].start(round_)

    def state(self) -> dict[str, Any]:
        """See :meth:`Method.state`."""
        return {"beat": self._beat.state()} | self._slow_weights.state()

    def restore(self, state: dict[str, Any], num_steps: int) -> None:
        """See :meth:`Method.restore`."""
        self._beat.restore(state["beat"], num_steps)
        self._slow_weights.restore(state)
        for index in range(len(self.blocks)):
            self.after_update(index)


def _make(averaging: OuterConfig, config: RunConfig, steps_per_epoch: int) -> MakeMethod:
    intervals = Intervals(averaging.every, config.epochs * steps_per_epoch)
    return partial(Outer, intervals=intervals, **averaging.of_slow_weights())


WAY = Way(("outer", "diloco", "slowmo", "noloco"), OuterConfig, _make, no_average_before_an_update, OuterConfig.rhythms)
