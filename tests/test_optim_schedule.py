import subprocess
import sys
from itertools import pairwise
from math import pi

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgnet.optim.schedule import learning_rate

RECIPE = {"lr": 1e-3, "min_lr": 1e-5, "warmup_steps": 50, "warmup_factor": 0.01, "total_steps": 900}


def test_end_points():
    assert learning_rate(0, **RECIPE) == pytest.approx(1e-5)
    assert learning_rate(25, **RECIPE) == pytest.approx(0.505e-3)
    assert learning_rate(50, **RECIPE) == 1e-3
    assert learning_rate(475, **RECIPE) == pytest.approx((1e-3 + 1e-5) / 2)
    assert learning_rate(900, **RECIPE) == 1e-5
    assert learning_rate(10_000, **RECIPE) == 1e-5


def test_without_warmup_and_with_nothing_else():
    assert learning_rate(0, **{**RECIPE, "warmup_steps": 0}) == 1e-3
    only_warmup = {**RECIPE, "warmup_steps": 900}
    assert learning_rate(899, **only_warmup) == pytest.approx(1e-3, rel=2e-3)
    assert learning_rate(900, **only_warmup) == 1e-5


@given(
    lr=st.floats(1e-4, 2),
    min_share=st.floats(0, 1),
    factor=st.floats(0, 1),
    warmup=st.integers(0, 50),
    rest=st.integers(1, 200),
)
def test_rises_then_falls_in_small_steps(lr, min_share, factor, warmup, rest):
    settings = {"lr": lr, "min_lr": min_share * lr, "warmup_steps": warmup, "warmup_factor": factor}
    rates = [learning_rate(step, **settings, total_steps=warmup + rest) for step in range(warmup + rest + 3)]
    rounding = 1e-12 * lr
    steepest = max((1 - factor) / max(warmup, 1), pi / 2 / rest) * lr + rounding
    for step, (before, after) in enumerate(pairwise(rates)):
        change = after - before
        assert change >= -rounding if step < warmup else change <= rounding
        assert abs(change) <= steepest
    assert max(rates) == pytest.approx(lr)
    assert rates[-1] == rates[-3] == min_share * lr


def test_needs_no_torch():
    code = "import sys, imgnet.optim.schedule; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
