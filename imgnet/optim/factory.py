"""The one place where optimizers are made."""

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any, cast

import torch
from torch.nn import Parameter
from torch.optim import SGD, Adam, AdamW, Optimizer

from imgnet.config import AccumAdamConfig, AdamConfig, Decay, OptimizerConfig, SgdConfig
from imgnet.optim.accum_adam import AccumAdam, AccumAdamW
from imgnet.optim.kernels import FUSED_DEVICES, check_before_step, has_fused
from imgnet.optim.quasi_global import QuasiGlobalSGD

Groups = list[dict[str, Any]]


def build_optimizer(named_parameters: Iterable[tuple[str, Parameter]], config: OptimizerConfig) -> Optimizer:
    """The optimizer of a model, or of one bucket of its parameters.

    Those that are decayed (:class:`imgnet.config.Decay`) and those that are not are a parameter group each where there
    are any, in this order. Updates are torch's fused ones on CPU and CUDA, and its foreach ones elsewhere.

    All of them honour ``grad_scale`` and ``found_inf`` as ``torch.amp.GradScaler`` sets them: with ``found_inf`` 1 a
    step changes neither parameters nor state, and the host does not wait to know. (Not so the foreach ones.)

    Raises:
        ValueError: The name is unknown, there is nothing to optimize, or a setting is out of its range.
    """
    named_parameters = list(named_parameters)
    if not named_parameters:
        raise ValueError("there are no parameters to optimize")
    if config.name not in BUILDERS:
        near = get_close_matches(config.name, BUILDERS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"optimizer={config.name} is unknown; {hint}known are {', '.join(BUILDERS)}")
    build, schema = BUILDERS[config.name]
    if not isinstance(config, schema):
        raise ValueError(f"optimizer={config.name} needs a {schema.__name__}; got a {type(config).__name__}")
    return build(decay_groups(named_parameters, config.weight_decay, config.decay), config)


def decay_groups(
    named_parameters: Iterable[tuple[str, Parameter]], weight_decay: float, decay: Decay = Decay.by_shape
) -> Groups:
    """Parameters to decay, then those not to; without the empty ones."""
    decayed, plain = [], []
    for name, parameter in named_parameters:
        is_decayed = parameter.ndim >= 2 if decay is Decay.by_shape else not ("bn" in name or "bias" in name)
        (decayed if is_decayed else plain).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _sgd(groups: Groups, config: SgdConfig) -> Optimizer:
    if config.quasi_global:
        _refuse_other_devices(groups, config)
        return QuasiGlobalSGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)
    speed = _implementation(groups)
    optimizer = SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, **speed)
    if config.momentum:
        # Left to itself the fused step makes them when first used, from uninitialised memory, and a first step that is
        # skipped leaves them so. From zeros the first step gives the same bits.
        for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return _checked(optimizer)


def _adam(groups: Groups, config: AdamConfig) -> Optimizer:
    make = {"adam": Adam, "adamw": AdamW}[config.name]
    return _checked(make(groups, lr=config.lr, betas=_betas(config), eps=config.eps, **_implementation(groups)))


def _accum_adam(groups: Groups, config: AccumAdamConfig) -> Optimizer:
    _refuse_other_devices(groups, config)
    make = {"accum_adam": AccumAdam, "accum_adamw": AccumAdamW}[config.name]
    return make(groups, lr=config.lr, betas=_betas(config), eps=config.eps, accum_iter=config.accum_iter)


BUILDERS: dict[str, tuple[Callable[[Groups, Any], Optimizer], type[OptimizerConfig]]] = {
    "sgd": (_sgd, SgdConfig),
    "adam": (_adam, AdamConfig),
    "adamw": (_adam, AdamConfig),
    "accum_adam": (_accum_adam, AccumAdamConfig),
    "accum_adamw": (_accum_adam, AccumAdamConfig),
}


def _betas(config: AdamConfig) -> tuple[float, float]:
    if len(config.betas) != 2:
        raise ValueError(f"optimizer.betas={list(config.betas)} must be two numbers")
    return cast("tuple[float, float]", tuple(config.betas))


def _implementation(groups: Groups) -> dict[str, bool]:
    return {"fused": True} if all(has_fused(group["params"]) for group in groups) else {"foreach": True}


def _refuse_other_devices(groups: Groups, config: OptimizerConfig) -> None:
    for parameter in (parameter for group in groups for parameter in group["params"]):
        if not has_fused([parameter]):
            known = " and ".join(FUSED_DEVICES)
            raise ValueError(f"optimizer={config.name} runs on {known}; parameters are on {parameter.device.type}")


def _checked(optimizer: Optimizer) -> Optimizer:
    optimizer.register_step_pre_hook(check_before_step)
    return optimizer
