"""What the update rules share: lists of tensors of one group, and torch's fused kernels on them.

The fused kernels make one pass over memory and skip themselves on the device where ``found_inf`` is 1, so that
neither an update nor a skipped one needs the host to wait. They are the ones behind ``torch.optim.SGD(fused=True)``
and ``Adam(fused=True)``, for CPU and CUDA. They take tensors for plain runs of numbers in memory: all tensors of one
parameter must be laid out alike, which on CPU they do not check themselves.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

FUSED_DEVICES = ("cpu", "cuda")


def has_fused(params: Iterable[Tensor]) -> bool:
    """Whether the fused kernels can update these parameters."""
    return all(param.device.type in FUSED_DEVICES and param.is_floating_point() for param in params)


def params_with_gradients(group: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters of a group that have a gradient, and these gradients; laid out alike."""
    pairs: list[tuple[Tensor, Tensor]] = [(param, param.grad) for param in group["params"] if param.grad is not None]
    params, grads = [param for param, _ in pairs], [grad for _, grad in pairs]
    check_layouts(params, grads)
    return params, grads


def check_layouts(params: Sequence[Tensor], grads: Sequence[Tensor]) -> None:
    """Raise RuntimeError where a gradient's numbers lie in memory in another order than its parameter's."""
    for param, grad in zip(params, grads, strict=True):
        if param.stride() != grad.stride() and _strides(param) != _strides(grad):
            raise RuntimeError(
                f"a gradient of shape {tuple(grad.shape)} has strides {grad.stride()}, its parameter {param.stride()}; "
                "give it the parameter's (torch.empty_like(param)), or the update would mix up their elements"
            )


def _strides(tensor: Tensor) -> list[int]:
    """Strides that matter: those of dimensions of size 1 are never used."""
    return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size != 1]


def check_before_step(optimizer: Optimizer, _args: object, _kwargs: object) -> None:
    """A pre-hook of ``step`` with ``check_layouts``."""
    for group in optimizer.param_groups:
        params_with_gradients(group)


def amp_tensors(optimizer: Optimizer) -> tuple[Tensor | None, Tensor | None]:
    """``grad_scale`` and ``found_inf``, which ``torch.amp.GradScaler`` sets on an optimizer for the time of a step.

    They are absent otherwise, and may not be declared as None: the scaler multiplies a ``grad_scale`` that it finds.
    """
    return getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None)


def copy(targets: list[Tensor], values: list[Tensor], skip: Tensor | None = None) -> None:
    """``targets = values``, unless ``skip`` is 1 (which takes one kernel for each tensor)."""
    if skip is None:
        torch._foreach_copy_(targets, values)  # pyright: ignore[reportPrivateImportUsage]
        return
    skipped = skip.reshape(()) == 1
    for target, value in zip(targets, values, strict=True):
        torch.where(skipped, target, value, out=target)


def add_scaled(
    targets: list[Tensor],
    addends: list[Tensor],
    factor: float,
    *,
    decay: float = 0.0,
    grad_scale: Tensor | None = None,
    skip: Tensor | None = None,
) -> None:
    """``targets += factor * (addends / grad_scale + decay * targets)``, unless ``skip`` is 1.

    This is the fused step of plain SGD with the learning rate ``-factor``. Where ``grad_scale`` is given, ``addends``
    are left divided by it. ``grad_scale`` and ``skip`` are float32 tensors of one element on the device of the
    targets.
    """
    torch._fused_sgd_(  # pyright: ignore[reportPrivateImportUsage]
        targets,
        addends,
        [],
        weight_decay=decay,
        momentum=0.0,
        lr=-factor,
        dampening=0.0,
        nesterov=False,
        maximize=False,
        is_first_step=False,
        grad_scale=grad_scale,
        found_inf=skip,
    )


@dataclass(frozen=True)
class AdamRates:
    """The numbers of one step of Adam, or AdamW where the decay is ``decoupled``."""

    lr: float
    betas: tuple[float, float]
    eps: float
    decay: float
    decoupled: bool


def adam_step(
    targets: list[Tensor],
    grads: list[Tensor],
    moments: tuple[list[Tensor], list[Tensor]],
    step: Tensor,
    rates: AdamRates,
    *,
    grad_scale: Tensor | None = None,
    skip: Tensor | None = None,
) -> None:
    """One step of Adam with bias corrections ``1 - beta ** step``, unless ``skip`` is 1.

    Changes targets and both moments in place, and where ``grad_scale`` is given leaves ``grads`` divided by it.
    ``step`` is a float32 tensor of one element on the device of the targets, 1 or more; it is only read.
    """
    adam, adamw = torch._fused_adam_, torch._fused_adamw_  # pyright: ignore[reportPrivateImportUsage]
    (adamw if rates.decoupled else adam)(
        targets,
        grads,
        *moments,
        [],
        [step] * len(targets),
        lr=rates.lr,
        beta1=rates.betas[0],
        beta2=rates.betas[1],
        weight_decay=rates.decay,
        eps=rates.eps,
        amsgrad=False,
        maximize=False,
        grad_scale=grad_scale,
        found_inf=skip,
    )
