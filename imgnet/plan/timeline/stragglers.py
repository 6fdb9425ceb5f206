"""By how much longer than the others a worker computes: from step to step, and always."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imgnet.config import ConfigError

Factors = NDArray[np.float64]
SEED = 0
"""Predictions of one command are for the same draws."""
LEAST = 0.2
"""No worker is faster than this share of the mean."""


@dataclass(frozen=True)
class Stragglers:
    """How the time of a forward and backward pass varies.

    Attributes:
        step_spread: standard deviation over the mean, drawn anew for each worker in each step.
        worker_spread: the same between workers, each of which stays as it is.
        slow: ranks that always compute so many times as long.
        hiccup: a factor of one worker in each step, drawn anew; 1: none.
        samples: measured passes over their mean, drawn from instead of a normal distribution.
    """

    step_spread: float = 0.0
    worker_spread: float = 0.0
    slow: Mapping[int, float] = field(default_factory=dict)
    hiccup: float = 1.0
    samples: tuple[float, ...] = ()

    @property
    def are_any(self) -> bool:
        """Whether not all passes take equally long."""
        return bool(self.step_spread or self.worker_spread or self.slow or self.samples) or self.hiccup != 1.0

    def draw(self, num_steps: int, world_size: int) -> Factors:
        """By how much longer each worker computes in each step, ``[steps, workers]``. The same for the same numbers.

        Raises:
            ConfigError: a slow rank is none of the workers.
        """
        random = np.random.default_rng(SEED)
        always = 1.0 + self.worker_spread * random.standard_normal(world_size)
        for rank, factor in self.slow.items():
            if not 0 <= rank < world_size:
                raise ConfigError([f"--slow {rank}:{factor:g}: there is no such rank; there are 0 to {world_size - 1}"])
            always[rank] = factor
        factors = np.maximum(always, LEAST) * self._steps(random, (num_steps, world_size))
        if self.hiccup != 1.0:
            factors[np.arange(num_steps), random.integers(world_size, size=num_steps)] *= self.hiccup
        return factors

    def _steps(self, random: np.random.Generator, shape: tuple[int, int]) -> Factors:
        if self.samples:
            return random.choice(np.array(self.samples), size=shape)
        return np.maximum(1.0 + self.step_spread * random.standard_normal(shape), LEAST)


def samples_of(steps_files: Sequence[Path]) -> tuple[float, ...]:
    """Computation in each logged step of finished runs, over its mean in that run.

    Only a run that logged every step (``log_every_steps=1``) tells how steps differ; a row of several steps is a mean.

    Raises:
        ConfigError: a file that cannot be read, or has too few steps.
    """
    samples: list[float] = []
    for path in steps_files:
        seconds = np.array([row["compute_s"] for row in rows_of(path)[1:]])  # the first step has start-up costs
        if len(seconds) < 10:
            raise ConfigError([f"{path}: {len(seconds)} logged steps; 11 or more tell how they differ"])
        samples += (seconds / seconds.mean()).tolist()
    return tuple(samples)


def rows_of(steps_file: Path) -> list[dict[str, float]]:
    """The rows of a ``steps.jsonl``.

    Raises:
        ConfigError: it cannot be read, or holds what no run writes.
    """
    try:
        rows = [json.loads(line) for line in steps_file.read_text(encoding="utf-8").splitlines()]
        times = [[float(row[key]) for key in ("step_s", "data_s", "compute_s")] for row in rows]
    except (OSError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError([f"{steps_file}: not the steps.jsonl of a run ({error})"]) from None
    if not all(isfinite(seconds) and seconds >= 0 for row in times for seconds in row):
        raise ConfigError([f"{steps_file}: times must be finite and not negative in every row"])
    return rows
