"""Streaming DiLoCo: one fragment of the model after the other, averaged behind the computation (arXiv 2501.18512)."""

from typing import Any, final

import torch

from imgnet.parallel.averaging.fragments import Fragments
from imgnet.parallel.averaging.method import Method
from imgnet.parallel.averaging.slow_weights import SlowWeights
from imgnet.parallel.mixing import Mixer


@final
class Streaming(Method):
    """A fragment theta_p is sent every H steps; tau steps later slow weights phi_p move towards W theta_p as it was.

    What they become is mixed in, ``theta_p <- (1 - alpha) phi_p + alpha theta_p``, or with ``by_difference`` the steps
    made meanwhile are kept, ``theta_p <- phi_p + (theta_p - theta_p as it was)``. With P = 1, tau = 0, alpha = 0 it is
    :class:`~imgnet.parallel.averaging.outer.Outer`.

    Args:
        mixer: see :class:`Method`; of as many blocks as there are fragments, or more.
        fragments: what is averaged when.
        alpha: in [0, 1].
        by_difference: instead of ``alpha``.
        of_slow_weights: see :class:`SlowWeights`.
    """

    def __init__(
        self, mixer: Mixer, fragments: Fragments, *, alpha: float, by_difference: bool, **of_slow_weights: Any
    ) -> None:
        self._sent = [torch.empty_like(block) for block in mixer.blocks]
        super().__init__(mixer, self._sent)
        self._fragments, self._of_phi, self._by_difference = fragments, 1.0 - alpha, by_difference
        self._slow_weights = SlowWeights(self.blocks, **of_slow_weights)
        self._starting: int | None = None
        self._under_way: int | None = None

    def before_step(self, step: int, lr: float) -> None:
        """See :meth:`Method.before_step`."""
        self._slow_weights.begin()
        if self._under_way is not None and step == self._fragments.due(self._under_way):
            for index in self._fragments.blocks(self._under_way, len(self.blocks)):
                self._take_in(self.blocks[index], self._sent[index], index)
            self._under_way = None
        self._starting = self._fragments.starting(step + 1)

    def _take_in(self, block: torch.Tensor, sent: torch.Tensor, index: int) -> None:
        if self._by_difference:
            block.sub_(sent)
        self.averagings[index].finish()
        slow = self._slow_weights.move(index, sent)
        block.add_(slow) if self._by_difference else block.lerp_(slow, self._of_phi)

    def before_update(self, index: int) -> None:
        """What is under way waits for its step."""

    def after_update(self, index: int) -> None:
        """See :meth:`Method.after_update`."""
        if self._starting is not None and index in self._fragments.blocks(self._starting, len(self.blocks)):
            self._start(index, self._starting, self.blocks[index])

    def _start(self, index: int, average: int, values: torch.Tensor) -> None:
        self._under_way = average
        self._sent[index].copy_(values)
        phase = self.schedule.phase_at(self._fragments.due(average) - self._fragments.delay - 1)
        self.averagings[index].start(phase.topology.round_at(self._fragments.round(average)))

    def state(self) -> dict[str, Any]:
        """See :meth:`Method.state`; with what was sent of the fragment under way."""
        under_way = () if self._under_way is None else self._fragments.blocks(self._under_way, len(self.blocks))
        sent = [self._sent[index] for index in under_way]
        return {"under_way": self._under_way, "sent": sent} | self._slow_weights.state()

    def restore(self, state: dict[str, Any], num_steps: int) -> None:
        """See :meth:`Method.restore`."""
        self._slow_weights.restore(state)
        if (average := state["under_way"]) is not None:
            for index, values in zip(self._fragments.blocks(average, len(self.blocks)), state["sent"], strict=True):
                self._start(index, average, values)
