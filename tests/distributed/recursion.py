"""The recursion of decentralized training, in float64 and in one process: what the workers must compute."""

from collections.abc import Callable, Collection
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from imgnet.parallel.topology import Schedule, mixing_matrix
from imgnet.runtime import Runtime
from tests.distributed.models import make_loader, make_model, objective

Vector = NDArray[np.float64]
Update = Callable[[Vector, Vector, dict[str, Any]], Vector]
"""``(parameters, gradient, state of the worker) -> parameters`` after a local update."""


def sgd(x: Vector, gradient: Vector, state: dict[str, Any], *, lr: float, momentum: float) -> Vector:
    state["m"] = momentum * state.get("m", 0.0) + gradient
    return x - lr * state["m"]


def quasi_global(x: Vector, gradient: Vector, state: dict[str, Any], *, lr: float, momentum: float) -> Vector:
    """QG-DSGDm as published: ``x`` is what the last averaging gave, and the last update began at ``state["x"]``."""
    d = (state["x"] - x) / lr if "x" in state else 0.0
    state["m"] = momentum * state.get("m", np.zeros_like(x)) + (1 - momentum) * d
    state["x"] = x
    return x - lr * (momentum * state["m"] + gradient)


def simulate(
    schedule: Schedule,
    update: Update,
    num_steps: int,
    *,
    max_grad_norm: float | None = None,
    skipped: Collection[int] = (),
) -> list[Vector]:
    """Parameters of all workers, ``[world size, number of parameters]``, after each step."""
    world_size = schedule.phases[0].topology.world_size
    model = make_model().double().to(memory_format=torch.contiguous_format)
    batches = [batches_of(rank, world_size, num_steps) for rank in range(world_size)]
    states: list[dict[str, Any]] = [{} for _ in range(world_size)]
    x = np.stack([nn.utils.parameters_to_vector(model.parameters()).detach().numpy()] * world_size)
    after = []
    for step in range(num_steps):
        gradients = [_gradient(model, x[rank], batches[rank][step], max_grad_norm) for rank in range(world_size)]
        if step > 0:
            x = mixing_matrix(schedule.round_at(step - 1), world_size) @ x
        if step not in skipped:
            x = np.stack([update(x[rank], gradients[rank], states[rank]) for rank in range(world_size)])
        after.append(x)
    return after


def batches_of(rank: int, world_size: int, num_steps: int) -> list[tuple[Tensor, Tensor]]:
    loader = make_loader(Runtime(rank, world_size, rank, world_size, torch.device("cpu"), 1))
    taken = zip(range(num_steps), loader.batches(epoch=0), strict=False)
    return [(deepcopy(batch.images).double(), deepcopy(batch.targets)) for _, batch in taken]


def _gradient(model: nn.Module, x: Vector, batch: tuple[Tensor, Tensor], max_grad_norm: float | None) -> Vector:
    nn.utils.vector_to_parameters(torch.from_numpy(x.copy()), model.parameters())
    model.zero_grad()
    objective(model, *batch).backward()
    if max_grad_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
    return torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None]).numpy().copy()


SGD_UPDATE = partial(sgd, lr=0.1, momentum=0.9)
QUASI_GLOBAL_UPDATE = partial(quasi_global, lr=0.1, momentum=0.9)
