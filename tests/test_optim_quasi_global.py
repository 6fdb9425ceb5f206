"""Quasi-global momentum, with several workers simulated in one process."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import Parameter

from imgnet.optim.quasi_global import QuasiGlobalSGD
from imgnet.parallel.topology import build_topology, mixing_matrix

WORKERS, SIZE, STEPS = 6, 11, 40
TOPOLOGY = build_topology("ring", WORKERS, 2)
MATRICES = [
    mixing_matrix(TOPOLOGY.round_at(step // 2), WORKERS) if step % 2 else np.eye(WORKERS) for step in range(STEPS)
]
"""Workers rest in every other step."""
LRS = [0.05 * min(1.0, step / 5) * (1 - step / STEPS) for step in range(STEPS)]
"""From 0 on, to see that a first learning rate of 0 divides nothing."""

rng = np.random.default_rng(4)
CURVATURE = rng.uniform(0.5, 2.0, size=(WORKERS, SIZE))
TARGET = rng.normal(size=(WORKERS, SIZE))
START = rng.normal(size=(WORKERS, SIZE))


def gradient(x: np.ndarray) -> np.ndarray:
    """Of a different quadratic for each worker; x has shape (WORKERS, SIZE)."""
    return CURVATURE * (x - TARGET)


def published(beta: float, mu: float, decay: float, nesterov: bool, stale: bool) -> np.ndarray:
    """The recursion as published, in float64. ``stale``: gradients at the parameters before the last averaging."""
    x, before, m = START.copy(), START.copy(), np.zeros_like(START)
    for step in range(STEPS):
        lr = LRS[step]
        g = gradient(before if stale else x) + decay * x
        local = beta * m + g
        half = x - lr * (g + beta * local if nesterov else local)
        after = MATRICES[step] @ half
        if lr:
            m = mu * m + (1 - mu) * (x - after) / lr
        elif step:
            raise AssertionError("only the first learning rate is 0")
        x, before = after, half
    return x


def simulated(options: dict[str, Any], stale: bool, skipped: tuple[int, ...] = (), dtype: Any = torch.float64):
    """Mix, step, launch, as an engine does it: gradients at the parameters before mixing where ``stale``."""
    params = [Parameter(torch.tensor(row, dtype=dtype).reshape(1, SIZE)) for row in START]
    optimizers: list[Any] = [QuasiGlobalSGD([param], lr=0.1, **options) for param in params]
    for step in range(STEPS):
        values = np.concatenate([param.detach().numpy() for param in params])
        mixed = values if step == 0 else MATRICES[step - 1] @ values
        grads = gradient(values if stale else mixed)
        for rank, (param, optimizer) in enumerate(zip(params, optimizers, strict=True)):
            with torch.no_grad():
                param.copy_(torch.from_numpy(mixed[rank : rank + 1]))
            param.grad = torch.tensor(grads[rank : rank + 1], dtype=dtype)
            optimizer.param_groups[0]["lr"] = LRS[step]
            if step in skipped:
                param.grad.fill_(torch.nan)
                optimizer.found_inf = torch.tensor(1.0)
            elif skipped:
                optimizer.found_inf = torch.tensor(0.0)
            optimizer.step()
    return MATRICES[-1] @ np.concatenate([param.detach().numpy() for param in params])


@pytest.mark.parametrize("stale", [False, True])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize(("mu", "decay"), [(None, 0.0), (0.7, 0.01)])
def test_follows_the_published_recursion(mu, decay, nesterov, stale):
    expected = published(0.9, 0.9 if mu is None else mu, decay, nesterov, stale)
    options = {"momentum": 0.9, "mu": mu, "weight_decay": decay, "nesterov": nesterov}
    np.testing.assert_allclose(simulated(options, stale), expected, rtol=1e-10, atol=1e-12)
    single = simulated(options, stale, dtype=torch.float32)
    np.testing.assert_allclose(single, expected, rtol=1e-3, atol=1e-4)


def test_without_momentum_it_is_sgd():
    expected = published(0.0, 0.0, 0.0, False, False)
    np.testing.assert_allclose(simulated({"momentum": 0.0}, False), expected, rtol=1e-12)


def test_skipped_steps_do_not_spread():
    result = simulated({"momentum": 0.9}, True, skipped=(0, 1, 9, 10))
    assert np.isfinite(result).all()


def test_one_worker_alone_has_a_slower_momentum():
    """Without averaging d is the update itself, so that m is the moving average of the worker's own updates."""
    param = Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = QuasiGlobalSGD([param], lr=0.1, momentum=0.5)
    param.grad = torch.ones(3, dtype=torch.float64)
    optimizer.step()
    torch.testing.assert_close(param.detach(), torch.full((3,), -0.1, dtype=torch.float64))
    optimizer.step()  # d = 1, m = 0.5
    torch.testing.assert_close(param.detach(), torch.full((3,), -0.225, dtype=torch.float64))


@pytest.mark.parametrize(
    ("settings", "message"), [({"momentum": 1.0}, "momentum=1.0"), ({"momentum": 0.9, "mu": -1}, "mu=-1")]
)
def test_refusals(settings, message):
    with pytest.raises(ValueError, match=message + " must be at least 0 and below 1"):
        QuasiGlobalSGD([Parameter(torch.zeros(3))], lr=0.1, **settings)
