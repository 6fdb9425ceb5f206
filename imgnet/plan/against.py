"""Prediction beside measurement for finished runs. What was not given is fitted to them, and said to be."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imgnet.config import Accelerator, ClusterConfig, ConfigError, LocalConfig, RunConfig, SlurmConfig, read
from imgnet.layout import Layout
from imgnet.plan.computation import Computation
from imgnet.plan.predict import predict, setting_of
from imgnet.plan.source import computation_of
from imgnet.plan.timeline.stragglers import Stragglers, rows_of
from imgnet.results.names import display_path
from imgnet.rundir import read_json
from imgnet.runtime import visible_gpus

NUM_STEPS = 60
"""Replayed for each run, many times while fitting."""
IMAGES_PER_S, BETWEEN, WITHIN = "images_per_s", "between_gbit_s", "within_gbit_s"
FIRST_GUESSES_GBIT_S = (0.1, 1.0, 10.0, 100.0)
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """A finished run: what was asked for, where it ran, and how long its steps took, without waiting for data."""

    run_dir: Path
    config: RunConfig
    layout: Layout
    step_s: float


@dataclass(frozen=True)
class Comparison:
    """One run. ``left_out_s`` is predicted by a fit to the others; None where that is not possible or nothing is."""

    measured: Measured
    predicted_s: float
    left_out_s: float | None


@dataclass(frozen=True)
class Fit:
    """All runs, and what was fitted: names, with units, and values."""

    comparisons: list[Comparison]
    fitted: dict[str, float]


def measured_run(run_dir: Path) -> Measured:
    """Read a finished run.

    Raises:
        ConfigError: it is not finished, or logged too few steps.
    """
    run = read_json(run_dir / "run.json")
    if run.get("status") != "completed":
        raise ConfigError([f"{display_path(run_dir)} is {run.get('status', 'no run')}; only a completed run tells"])
    config = read(run_dir / ".hydra" / "config.yaml")
    rows = rows_of(run_dir / "steps.jsonl")[1:]  # the first has start-up costs
    if not rows:
        raise ConfigError([f"{display_path(run_dir)} logged one step or none; run it with a smaller log_every_steps"])
    seconds = float(np.mean([row["step_s"] - row["data_s"] for row in rows]))
    return Measured(run_dir, config, _layout(config.cluster, int(run["world_size"])), seconds)


def _layout(cluster: ClusterConfig, world_size: int) -> Layout:
    if isinstance(cluster, SlurmConfig):
        return Layout(cluster.nodes, world_size // cluster.nodes, use_gpu=cluster.accelerator is not Accelerator.cpu)
    assert isinstance(cluster, LocalConfig)
    return Layout(1, world_size, use_gpu=cluster.accelerator is not Accelerator.cpu and visible_gpus() > 0)


def compare(runs: Sequence[Measured], measured: Path | None, images_per_s: float | None, stragglers: Stragglers) -> Fit:
    """Predict every run, with what was not given fitted to all of them, and each once more by a fit to the others.

    Args:
        runs: of one model.
        measured: a file of ``imgnet measure``.
        images_per_s: or of one worker; with neither it is fitted.
        stragglers: how passes vary.

    Raises:
        ConfigError: there are fewer runs than numbers to fit, or they are of several models.
    """
    models = sorted({f"{run.config.model.name} at {run.config.data.train_px} pixels" for run in runs})
    if len(models) > 1:
        raise ConfigError([f"--against needs runs of one model; these are of {' and '.join(models)}"])
    model = _Model(measured, images_per_s, stragglers, _unknown(runs, given=(measured or images_per_s) is not None))
    if len(runs) < len(model.unknown):
        raise ConfigError(
            [
                f"--against: {len(runs)} run(s) cannot tell {len(model.unknown)} numbers ({', '.join(model.unknown)}); "
                "name more runs, or give --measured or cluster.network"
            ]
        )
    values = model.fit(runs)
    alone = [_left_out(model, runs, place) for place in range(len(runs))]
    comparisons = [
        Comparison(run, model.step_s(run, values), left_out) for run, left_out in zip(runs, alone, strict=True)
    ]
    return Fit(comparisons, dict(zip(model.unknown, np.exp(values).tolist(), strict=True)))


def _left_out(model: "_Model", runs: Sequence[Measured], place: int) -> float | None:
    others = [run for number, run in enumerate(runs) if number != place]
    if not model.unknown or len(others) < len(model.unknown):
        return None
    return model.step_s(runs[place], model.fit(others))


def _unknown(runs: Sequence[Measured], *, given: bool) -> list[str]:
    """What has to be fitted, by the name of the option or key that would give it."""
    unknown = [] if given else [IMAGES_PER_S]
    for run in runs:
        network, layout = run.config.cluster.network, run.layout
        needed = {BETWEEN: layout.num_nodes > 1, WITHIN: layout.workers_per_node > 1}
        unknown += [key for key, is_needed in needed.items() if is_needed and getattr(network, key) is None]
    return list(dict.fromkeys(unknown))


@dataclass(frozen=True)
class _Model:
    """Predictions as a function of the logarithms of what is not known."""

    measured: Path | None
    images_per_s: float | None
    stragglers: Stragglers
    unknown: list[str]

    def fit(self, runs: Sequence[Measured]) -> Values:
        """The values with the smallest squares of relative errors; starts from each of several bandwidths."""
        if not self.unknown:
            return np.zeros(0)
        from scipy.optimize import minimize

        def squares(values: Values) -> float:
            return sum(float(np.log(self.step_s(run, values) / run.step_s)) ** 2 for run in runs)

        starts = [self._start(runs, gbit_s) for gbit_s in FIRST_GUESSES_GBIT_S]
        best = min(starts, key=squares)
        return minimize(squares, best, method="Nelder-Mead", options={"xatol": 1e-3, "fatol": 1e-6}).x

    def _start(self, runs: Sequence[Measured], gbit_s: float) -> Values:
        fastest = max(run.config.global_batch_size / run.layout.world_size / run.step_s for run in runs)
        return np.log([fastest if name == IMAGES_PER_S else gbit_s for name in self.unknown])

    def step_s(self, run: Measured, values: Values) -> float:
        """The prediction for a run."""
        assumed = dict(zip(self.unknown, np.exp(values).tolist(), strict=True))
        network = replace(
            run.config.cluster.network,
            **{key: value for key, value in assumed.items() if key in (BETWEEN, WITHIN)},
        )
        config = replace(run.config, cluster=replace(run.config.cluster, network=network))
        computation = self._computation(config, assumed.get(IMAGES_PER_S, self.images_per_s))
        setting = setting_of(config, computation, self.stragglers, run.layout)
        return predict(setting, num_train=config.global_batch_size, num_steps=NUM_STEPS).step_s

    def _computation(self, config: RunConfig, images_per_s: float | None) -> Computation:
        return computation_of(config, None if images_per_s is not None else self.measured, images_per_s)
