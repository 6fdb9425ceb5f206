"""Loss scaling for fp16 that all workers agree on, without waiting for the device.

``torch.amp.GradScaler`` keeps one state in each process. Workers that average parameters, not gradients, would skip
different steps and drift apart in scale; here an overflow in one worker makes all of them skip.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

INITIAL_SCALE = 2.0**16
GROWTH_FACTOR = 2.0
BACKOFF_FACTOR = 0.5
GROWTH_INTERVAL = 2000


class LossScaler:
    """The scale of the loss, halved after an overflow and doubled after 2,000 steps without one.

    Args:
        device: where the gradients are.
        enabled: with False every method does nothing, for fp32 and bf16.
    """

    def __init__(self, device: torch.device, *, enabled: bool) -> None:
        self.enabled = enabled
        self.scale = torch.full((), INITIAL_SCALE if enabled else 1.0, device=device)
        self.steps_without_overflow = torch.zeros((), dtype=torch.int32, device=device)
        self.found_inf = torch.zeros((), device=device)

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss to call ``backward`` on."""
        return loss * self.scale if self.enabled else loss

    def unscale(self, gradients: Sequence[Tensor]) -> None:
        """Divide gradients by the scale, and find out whether any worker's overflowed. Collective."""
        if not self.enabled:
            return
        self.found_inf.zero_()
        torch._amp_foreach_non_finite_check_and_unscale_(list(gradients), self.found_inf, self.scale.reciprocal())
        dist.all_reduce(self.found_inf, op=dist.ReduceOp.MAX)

    def step(self, optimizer: Optimizer) -> None:
        """An optimizer step, which the optimizer itself leaves out where an overflow was found.

        The optimizers of this package take the flag on the device, as torch's fused ones do, so no one waits for it.
        """
        if self.enabled:
            optimizer.grad_scale = None  # type: ignore[attr-defined]
            optimizer.found_inf = self.found_inf  # type: ignore[attr-defined]
        optimizer.step()

    def state(self) -> dict[str, Tensor]:
        """What :meth:`restore` needs."""
        return {"scale": self.scale, "steps_without_overflow": self.steps_without_overflow}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on with the scale of ``state``."""
        self.scale.copy_(state["scale"])
        self.steps_without_overflow.copy_(state["steps_without_overflow"])

    def update(self) -> None:
        """Adapt the scale to what the last :meth:`unscale` found."""
        if self.enabled:
            torch._amp_update_scale_(
                self.scale,
                self.steps_without_overflow,
                self.found_inf,
                GROWTH_FACTOR,
                BACKOFF_FACTOR,
                GROWTH_INTERVAL,
            )
