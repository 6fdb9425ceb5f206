"""Average in every step, behind the next forward and backward pass."""

from typing import TYPE_CHECKING, Any, final

from imgnet.config import AveragingConfig
from imgnet.parallel.averaging.method import Method
from imgnet.parallel.averaging.rhythm import in_every_step
from imgnet.parallel.averaging.way import Way

if TYPE_CHECKING:
    from imgnet.parallel.mixing import Mixer


@final
class EveryStep(Method):
    """``x[t+1] = W x[t] - lr u``: the average that began after one update is taken in before the next."""

    def __init__(self, mixer: "Mixer") -> None:
        super().__init__(mixer)
        self._step = 0

    def before_step(self, step: int, lr: float) -> None:
        """See :meth:`Method.before_step`."""
        self._step = step

    def before_update(self, index: int) -> None:
        """See :meth:`Method.before_update`."""
        self.averagings[index].finish()

    def after_update(self, index: int) -> None:
        """See :meth:`Method.after_update`."""
        self.averagings[index].start(self.schedule.round_at(self._step))

    def state(self) -> dict[str, Any]:
        """Empty: what is under way follows from the blocks and the step."""
        return {}

    def restore(self, state: dict[str, Any], num_steps: int) -> None:
        """See :meth:`Method.restore`."""
        if num_steps > 0:
            for averaging in self.averagings:
                averaging.start(self.schedule.round_at(num_steps - 1))


WAY = Way(("every_step",), AveragingConfig, lambda *_: EveryStep, rhythms=in_every_step, is_of_decent_dp=True)
