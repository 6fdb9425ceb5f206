"""Streaming DiLoCo: one fragment of the model after the other, averaged behind the computation (arXiv 2501.18512)."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, final

from imgnet.config import RunConfig
from imgnet.parallel.averaging.fragments import FragmentsConfig, fragment_problems, fragments_of
from imgnet.parallel.averaging.merging import Merging, MergingConfig, merging_of, merging_problems
from imgnet.parallel.averaging.method import MakeMethod, Method
from imgnet.parallel.averaging.rhythm import Fragments
from imgnet.parallel.averaging.slow_weights import SlowWeights, SlowWeightsConfig
from imgnet.parallel.averaging.turns import Turns
from imgnet.parallel.averaging.way import Way, no_average_before_an_update

if TYPE_CHECKING:
    from imgnet.parallel.mixing import Mixer


@dataclass
class StreamingConfig(FragmentsConfig, MergingConfig, SlowWeightsConfig):
    """Slow weights and an outer optimizer, for a part of the model at a time and behind the computation."""


@final
class Streaming(Method):
    """A fragment theta_p is sent every H steps; tau steps later slow weights phi_p move towards W theta_p as it was.

    Then they are merged into what local steps made of theta_p meanwhile. With P = 1, tau = 0, alpha = 0 it is `Outer`.
    """

    def __init__(self, mixer: "Mixer", fragments: Fragments, merging: Merging, **of_slow_weights: Any) -> None:
        self._sent = [block.new_empty(block.shape) for block in mixer.blocks]
        super().__init__(mixer, self._sent)
        self._turns, self._merging = Turns(mixer, fragments), merging
        self._slow_weights = SlowWeights(self.blocks, **of_slow_weights)

    def before_step(self, step: int, lr: float) -> None:
        """See :meth:`Method.before_step`."""
        for index in self._turns.begin(step):
            self._merging.before(self.blocks[index], self._sent[index])
            self.averagings[index].finish()
            self._merging.after(self.blocks[index], self._slow_weights.move(index, self._sent[index]))
        self._slow_weights.begin_step(lr)

    def before_update(self, index: int) -> None:
        """What is under way waits for its step."""

    def after_update(self, index: int) -> None:
        """See :meth:`Method.after_update`."""
        if (round_ := self._turns.round_of(index)) is not None:
            self._sent[index].copy_(self.blocks[index])
            self.averagings[index].start(round_)

    def state(self) -> dict[str, Any]:
        """See :meth:`Method.state`; with what was sent of the fragment under way."""
        sent = [self._sent[index] for index in self._turns.blocks()]
        return {"under_way": self._turns.under_way, "sent": sent} | self._slow_weights.state()

    def restore(self, state: dict[str, Any], num_steps: int) -> None:
        """See :meth:`Method.restore`."""
        self._slow_weights.restore(state)
        self._turns.under_way = state["under_way"]
        for index, values in zip(self._turns.blocks(), state["sent"], strict=True):
            self._sent[index].copy_(values)
            self.averagings[index].start(self._turns.round())


def _make(averaging: StreamingConfig, config: RunConfig, steps_per_epoch: int) -> MakeMethod:
    fragments, merging = fragments_of(averaging), merging_of(averaging)
    return partial(Streaming, fragments=fragments, merging=merging, **averaging.of_slow_weights())


def _problems(averaging: StreamingConfig, config: RunConfig) -> Iterator[str]:
    yield from (*fragment_problems(averaging), *merging_problems(averaging))
    yield from no_average_before_an_update(averaging, config)


WAY = Way(("streaming_diloco",), StreamingConfig, _make, _problems, StreamingConfig.rhythms)
