"""Quasi-global momentum for decentralized SGD (QG-DSGDm; Lin et al., ICML 2021, arXiv 2102.04761).

Momentum of the gradients of one worker drifts away from that of the others where their data differ. Quasi-global
momentum is the moving average of how a worker's parameters really moved, averaging with its neighbours included. As
published, with mixing matrix W, momentum beta, mu = beta, m = 0 at first:

    x_{t+1/2} = x_t - lr_t * (beta * m_{t-1} + g_t);    x_{t+1} = sum_j W_ij x_{j,t+1/2}
    d_t = (x_t - x_{t+1}) / lr_t;                       m_t = mu * m_{t-1} + (1 - mu) * d_t
"""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from imgnet.optim.kernels import add_scaled, amp_tensors, copy, params_with_gradients


class QuasiGlobalSGD(Optimizer):
    """The local part of QG-DSGDm for an engine that averages after one update and mixes in just before the next.

    ``step`` is called when the parameters hold x_t, the result of the last averaging (of the last update where there
    was none), and it leaves x_{t+1/2}, which is averaged next. It sees x_{t+1} one call later, and only then forms d_t,
    from the x_t and lr_t that it kept. Each call does, in this order, with x the parameters as they are:

        d = (kept_x - x) / kept_lr       (0 in the first call, and where kept_lr = 0)
        m = mu * m + (1 - mu) * d
        kept_x = x;  kept_lr = lr
        x -= lr * (beta * m + g)         (g: the gradient plus weight_decay * x)

    This is the published recursion in x_t exactly, whatever the matrix of each round. One thing may differ, and is the
    engine's: an engine that averages behind the next forward pass computes g_t at the parameters before that averaging,
    x_{t-1/2}, rather than at x_t. With ``nesterov`` the update is ``g + beta * (beta * m + g)`` (QG-DSGDm-N).

    State: ``momentum_buffer`` (m) and ``kept_param`` for each parameter; ``inverse_lr`` (1 / kept_lr, 0 at first) in
    each group, a tensor of no dimension. All parameters of a group have one dtype and device, CPU or CUDA. A step
    with ``found_inf`` 1 changes nothing, without waiting for the device; the next d then spans two averagings.
    """

    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        momentum: float,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        mu: float | None = None,
    ) -> None:
        """``momentum`` is beta; ``mu`` is the same unless given. Both lie in [0, 1)."""
        mu = momentum if mu is None else mu
        for name, value in (("momentum", momentum), ("mu", mu)):
            if not 0.0 <= value < 1.0:
                raise ValueError(f"{name}={value} must be at least 0 and below 1")
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov, "mu": mu}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One local update of all parameters that have a gradient. Closures are not supported."""
        if closure is not None:
            raise TypeError("QuasiGlobalSGD.step takes no closure")
        grad_scale, found_inf = amp_tensors(self)
        for group in self.param_groups:
            params, grads = params_with_gradients(group)
            if params:
                moments = self._advance(group, params, found_inf)
                _descend(group, params, grads, moments, grad_scale, found_inf)

    def _advance(self, group: dict[str, Any], params: list[Tensor], found_inf: Tensor | None) -> list[Tensor]:
        """Form m and keep x and lr, unless ``found_inf`` is 1. Returns m as it is without that exception."""
        moments, kept = self._buffers(params)
        if "inverse_lr" not in group:
            group["inverse_lr"] = torch.zeros((), dtype=params[0].dtype, device=params[0].device)
        inverse_lr: Tensor = group["inverse_lr"].to(params[0].device)
        group["inverse_lr"] = inverse_lr
        lr = float(group["lr"])
        next_inverse = torch.full_like(inverse_lr, 1.0 / lr if lr else 0.0)
        # A step that may be skipped works on copies; any other one in place.
        moved, after = (kept, moments) if found_inf is None else (_clones(kept), _clones(moments))
        torch._foreach_sub_(moved, params)  # pyright: ignore[reportPrivateImportUsage]
        torch._foreach_mul_(moved, inverse_lr)  # pyright: ignore[reportPrivateImportUsage]
        torch._foreach_lerp_(after, moved, 1.0 - group["mu"])  # pyright: ignore[reportPrivateImportUsage]
        if after is not moments:
            copy(moments, after, found_inf)
        copy(kept, params, found_inf)
        copy([inverse_lr], [next_inverse], found_inf)
        return after

    def _buffers(self, params: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        for param in params:
            state = self.state[param]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(param)
                state["kept_param"] = param.detach().clone()
        states = [self.state[param] for param in params]
        return [state["momentum_buffer"] for state in states], [state["kept_param"] for state in states]


def _clones(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.clone() for tensor in tensors]


def _descend(
    group: dict[str, Any],
    params: list[Tensor],
    grads: list[Tensor],
    moments: list[Tensor],
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    """``x -= lr * (g + beta * m)`` (Nesterov: ``(1 + beta) * g + beta^2 * m``), unless ``found_inf`` is 1."""
    lr, beta = float(group["lr"]), group["momentum"]
    of_gradient, of_moment = (lr * (1.0 + beta), lr * beta**2) if group["nesterov"] else (lr, lr * beta)
    add_scaled(params, grads, -of_gradient, decay=group["weight_decay"], grad_scale=grad_scale, skip=found_inf)
    add_scaled(params, moments, -of_moment, skip=found_inf)
