"""AccumAdam and AccumAdamW: Adam whose moments advance once in ``accum_iter`` steps (arXiv 2410.11998).

With s = accum_iter, t the number of this step from 1 on, k = ceil(t / s), and moments m = v = a = 0 at first, every
step does

    x -= lr * [(b1 * m + (1 - b1) * g) / (1 - b1^k)] / (sqrt((b2 * v + (1 - b2) * g^2) / (1 - b2^k)) + eps)
    a += g / s

and then, when s divides t,

    m = b1 * m + (1 - b1) * a;    v = b2 * v + (1 - b2) * a^2;    a = 0.

So each worker of a decentralized run estimates its second moment from the mean of s of its gradients, about as
accurate as one of a batch s times as large, and still makes an update in every step.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from imgnet.optim.kernels import AdamRates, adam_step, add_scaled, amp_tensors, copy, params_with_gradients

Moments: TypeAlias = tuple[list[Tensor], list[Tensor]]


@dataclass
class _Count:
    """How many steps a group has made, and which block of ``accum_iter`` steps the current one is in."""

    step: Tensor
    """int64, no dimension; the parameter group's own, saved with it."""
    block: Tensor
    """k = ceil(t / s) of the current step, as float32 for the kernels."""
    host: int | None = None
    """The same number as ``step``, where the host knows it."""

    def begin(self, accum_iter: int) -> bool:
        """Count a step that is certain to be made. True: it is the last of its block."""
        if self.host is None:
            self.host = int(self.step.item())  # waits for the device, once
        self.host += 1
        self.step.add_(1)
        self.block.fill_((self.host + accum_iter - 1) // accum_iter)
        return self.host % accum_iter == 0

    def begin_unless(self, found_inf: Tensor, accum_iter: int) -> Tensor:
        """Count a step unless ``found_inf`` is 1. Returns 0 where it is made and the last of its block, else 1."""
        self.host = None
        skipped = found_inf.reshape(()) == 1
        self.step.add_(~skipped)
        self.block.copy_((self.step + (accum_iter - 1)).div_(accum_iter, rounding_mode="floor"))
        return (skipped | (self.step % accum_iter != 0)).float()


@dataclass
class _GroupStep:
    """One parameter group in one step: what has a gradient, and what the loss scaler has set."""

    group: dict[str, Any]
    params: list[Tensor]
    grads: list[Tensor]
    count: _Count
    grad_scale: Tensor | None
    found_inf: Tensor | None

    def rates(self, *, decoupled: bool) -> AdamRates:
        group = self.group
        return AdamRates(float(group["lr"]), tuple(group["betas"]), group["eps"], group["weight_decay"], decoupled)


class _AccumAdamBase(Optimizer):
    """What the two have in common. Only ``_decoupled`` differs.

    All parameters of a group have the same dtype and device (CPU or CUDA) and count steps together; one without a
    gradient is left as it is in that step. Each step is the fused step of torch's Adam on a copy of the moments (with
    ``accum_iter=1`` on the moments themselves, which makes it torch's Adam), then an addition to the accumulated
    gradient. The copies are kept from step to step, so that nothing of the size of the parameters is ever allocated
    again: with the moments and the accumulated gradient that is five times the memory of the parameters.

    Nothing waits for the device. The step number is kept on the device, in the parameter group, and mirrored on the
    host; once ``found_inf`` is set on the optimizer (as ``torch.amp.GradScaler`` does), only the device knows how
    many steps were made, and whether a block ends is decided there. The first step after loading a state, and one
    without ``found_inf`` after one with it, read the number once from the device. ``found_inf`` must be 0 or 1: agree
    on it over the workers with a maximum, not a sum.

    ``state_dict`` holds tensors and numbers only: for each parameter ``exp_avg``, ``exp_avg_sq`` and (for
    ``accum_iter > 1``) ``accum_grad``; in each parameter group ``step``, an int64 tensor of no dimension.
    """

    _decoupled: ClassVar[bool]
    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        accum_iter: int = 4,
    ) -> None:
        if accum_iter < 1:
            raise ValueError(f"accum_iter={accum_iter} must be 1 or more")
        if not all(0.0 <= beta < 1.0 for beta in betas):
            raise ValueError(f"betas={betas} must both be at least 0 and below 1")
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "accum_iter": accum_iter}
        super().__init__(params, defaults)
        self._forget()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget()

    def _forget(self) -> None:
        """Drop what is rebuilt when needed: the copies of moments, and the host's idea of the steps."""
        self._copies: dict[Tensor, tuple[Tensor, Tensor]] = {}
        self._counts: dict[int, _Count] = {}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update of all parameters that have a gradient. Closures are not supported."""
        if closure is not None:
            raise TypeError(f"{type(self).__name__}.step takes no closure")
        scale_and_inf = amp_tensors(self)
        for number, group in enumerate(self.param_groups):
            params, grads = params_with_gradients(group)
            if params:
                count = self._count(number, group, params[0].device)
                self._update(_GroupStep(group, params, grads, count, *scale_and_inf))

    def _update(self, now: _GroupStep) -> None:
        accum_iter: int = now.group["accum_iter"]
        # Whether the block ends is known to the host (a bool) or only to the device (a tensor that is 0 where it ends).
        if now.found_inf is None:
            ends = now.count.begin(accum_iter)
        else:
            ends = now.count.begin_unless(now.found_inf, accum_iter)
        moments = self._buffers(now.params, "exp_avg"), self._buffers(now.params, "exp_avg_sq")
        if accum_iter == 1:
            self._adam(now, moments, now.grad_scale)
            return
        sums = self._buffers(now.params, "accum_grad")
        self._accumulate(now, sums)
        copies = self._copied(now.params, moments)
        self._adam(now, copies, None)  # the gradients were divided by the scale when they were accumulated
        if ends is not False:
            _advance(now, sums, moments, unused=copies[0], skip=None if ends is True else ends)

    def _adam(self, now: _GroupStep, moments: Moments, grad_scale: Tensor | None) -> None:
        rates = now.rates(decoupled=self._decoupled)
        adam_step(now.params, now.grads, moments, now.count.block, rates, grad_scale=grad_scale, skip=now.found_inf)

    def _accumulate(self, now: _GroupStep, sums: list[Tensor]) -> None:
        """``a += g / s``. Before the update, because a decay that is part of g is that of the old parameters."""
        share = 1.0 / now.group["accum_iter"]
        add_scaled(sums, now.grads, share, grad_scale=now.grad_scale, skip=now.found_inf)
        if now.group["weight_decay"] and not self._decoupled:
            add_scaled(sums, now.params, share * now.group["weight_decay"], skip=now.found_inf)

    def _buffers(self, params: list[Tensor], name: str) -> list[Tensor]:
        for param in params:
            if name not in self.state[param]:
                self.state[param][name] = torch.zeros_like(param)
        return [self.state[param][name] for param in params]

    def _copied(self, params: list[Tensor], moments: Moments) -> Moments:
        """The moments' values, in memory that is reused in each step."""
        for param in params:
            if param not in self._copies:
                self._copies[param] = (torch.empty_like(param), torch.empty_like(param))
        copies = [self._copies[param][0] for param in params], [self._copies[param][1] for param in params]
        copy(copies[0], moments[0])
        copy(copies[1], moments[1])
        return copies

    def _count(self, number: int, group: dict[str, Any], device: torch.device) -> _Count:
        """The count of group ``number``, made anew where the group's step was loaded."""
        is_new = "step" not in group
        if is_new:
            group["step"] = torch.zeros((), dtype=torch.int64, device=device)
        if number not in self._counts or self._counts[number].step is not group["step"]:
            group["step"] = group["step"].to(device)
            self._counts[number] = _Count(group["step"], torch.ones((), device=device), 0 if is_new else None)
        return self._counts[number]


def _advance(
    now: _GroupStep, sums: list[Tensor], moments: Moments, *, unused: list[Tensor], skip: Tensor | None
) -> None:
    """Take the accumulated gradient into the moments, and empty it; unless ``skip`` is 1.

    Adam's kernel does it in one pass over memory. Its targets are ``unused``, copies of the first moments that nobody
    reads again; at a learning rate of 0 they stay as they are.
    """
    rates = AdamRates(lr=0.0, betas=now.rates(decoupled=False).betas, eps=1.0, decay=0.0, decoupled=False)
    adam_step(unused, sums, moments, now.count.block, rates, skip=skip)
    add_scaled(sums, sums, -1.0, skip=skip)


class AccumAdam(_AccumAdamBase):
    """AccumAdam with L2 decay: g stands for the gradient plus ``weight_decay * x``. ``p.grad`` itself is not changed.

    (Unless ``grad_scale`` is set: then the gradients are divided by it in place, as by torch's fused optimizers.)
    """

    _decoupled = False


class AccumAdamW(_AccumAdamBase):
    """AccumAdam with decoupled decay: ``x *= 1 - lr * weight_decay`` before each update."""

    _decoupled = True
