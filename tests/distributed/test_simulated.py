"""Workers that take turns in one process compute what workers that are processes compute."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from imgnet import train
from imgnet.checkpoint.folder import read_worker
from imgnet.checkpoint.manifest import read_manifest, steps_of
from imgnet.config import (
    AllReduceConfig,
    AveragingConfig,
    CustomConfig,
    DecentralizedConfig,
    ModelConfig,
    RandomConfig,
    RunConfig,
    SimulatedConfig,
    TopologyConfig,
    WeightedConfig,
    WireDtype,
)
from imgnet.parallel.averaging.consensus import AdaptiveConfig
from imgnet.parallel.averaging.merging import Merge
from imgnet.parallel.averaging.methods.local import LocalStepsConfig
from imgnet.parallel.averaging.methods.outer import OuterConfig
from imgnet.parallel.averaging.methods.push_sum import PushSumConfig
from imgnet.parallel.averaging.methods.streaming import StreamingConfig
from imgnet.rundir import read_json
from imgnet.runtime import Runtime
from tests.distributed.harness import NOBODY_WATCHES, on_workers
from tests.distributed.models import ADAM, QUASI_GLOBAL, SGD
from tests.distributed.test_resume import NUM_EPOCHS, STEPS_PER_EPOCH, StopAfter, assert_same, configuration, make

WORKERS = 4
AVERAGING: dict[str, AveragingConfig] = {
    "random": LocalStepsConfig(name="local", every=2, overlap=True),
    "adaptive": AdaptiveConfig(name="adaptive", start_epoch=1),
    "local": LocalStepsConfig(name="local", every=3, start_epoch=0.5, exact_every=4),
    "outer": OuterConfig(name="outer", every=5, momentum=0.5, nesterov=False, scale_by_lr=True),
    "streaming": StreamingConfig(name="streaming_diloco", every=6, fragments=2, delay_steps=2),
    "streaming bf16": StreamingConfig(name="streaming_diloco", every=4, fragments=4, delay_steps=0, merge=Merge.delta),
    "push_sum": PushSumConfig(name="push_sum"),
    "push_sum bf16": PushSumConfig(name="push_sum", overlap=False),
}
ARROWS: list[Any] = [
    [{"from": 0, "to": 1, "weight": 0.5}, {"from": 0, "to": 2, "weight": 0.3}, {"from": 3, "to": 0, "weight": 0.4}],
    [{"from": 1, "to": 3, "weight": 0.3}, {"from": 2, "to": 3, "weight": 0.6}],
]
SAME_BITS: dict[str, TopologyConfig] = {
    "ring": WeightedConfig(name="ring", self_weight=0.7),
    "static-ring": WeightedConfig(name="static-ring"),
    "exp": DecentralizedConfig(name="exp"),
    "random": RandomConfig(name="random", seed=3),
    "bf16": WeightedConfig(name="ring", wire_dtype=WireDtype.bf16),
    "bf16 groups": DecentralizedConfig(name="complete", wire_dtype=WireDtype.bf16),
    "adaptive": WeightedConfig(name="static-ring"),
    "outer": RandomConfig(name="random", seed=3),
    "streaming": RandomConfig(name="random", seed=3),
    "streaming bf16": DecentralizedConfig(name="complete", wire_dtype=WireDtype.bf16),
    "push_sum": CustomConfig(name="custom", rounds=ARROWS),
    "push_sum bf16": DecentralizedConfig(name="directed-exp", wire_dtype=WireDtype.bf16),
}
"""Pairs and neighbours, and the groups whose sums are made in one order everywhere."""
ROUNDED: dict[str, TopologyConfig] = {
    "complete": DecentralizedConfig(name="complete"),
    "local": DecentralizedConfig(name="exp"),
    "allreduce": AllReduceConfig(name="allreduce"),
}
"""Sums that gloo makes in an order of its own."""
SMOOTH = ModelConfig(name="test_convnext")
"""Of timm, without ReLU, which lets a value pass or not by the last bit of such a sum."""


def real(name: str) -> RunConfig:
    optimizer = {"ring": ADAM, "static-ring": QUASI_GLOBAL}.get(name, SGD)
    config = configuration("ring", optimizer, passes=2 if name in ("exp", "allreduce") else 1)
    clipped = 0.5 if name in ("random", "allreduce") else None
    if name in ROUNDED:
        config = replace(config, model=SMOOTH, data=replace(config.data, train_px=32, eval_px=32, eval_resize_px=32))
    return replace(
        config,
        topology=(SAME_BITS | ROUNDED)[name],
        averaging=AVERAGING.get(name, AveragingConfig()),
        max_grad_norm=clipped,
    )


def simulated(config: RunConfig, workers: int = WORKERS) -> RunConfig:
    return replace(config, cluster=SimulatedConfig(name="simulated", num_workers=workers))


def run_all(runtime: Runtime, runs: list[tuple[RunConfig, Path]], stop_after: int | None) -> None:
    train.Requests = lambda *_: StopAfter(stop_after)  # type: ignore[misc, assignment]
    torch.set_num_threads(1)  # torch's sums depend on it, and processes share the cores
    for config, run_dir in runs:
        train.run(config, runtime, run_dir, threading.Event(), NOBODY_WATCHES)


def run(folder: Path, configs: dict[str, RunConfig], stop_after: int | None = None) -> None:
    """Train each in ``folder/<name>``, or go on there."""
    folder.mkdir(exist_ok=True)
    runs = [(config, folder / name) for name, config in configs.items()]
    for _, run_dir in runs:
        if not run_dir.exists():
            make(run_dir)
    in_one = isinstance(runs[0][0].cluster, SimulatedConfig)
    meeting = folder / f"meeting of {len([*folder.iterdir()])}"
    meeting.mkdir()
    on_workers(run_all, 1 if in_one else WORKERS, meeting, runs, stop_after)


def last(run_dir: Path) -> list[dict[str, Any]]:
    folder = steps_of(run_dir / "checkpoints")[0]
    return [read_worker(folder, rank) for rank in range(read_manifest(folder).world_size)]


def test_simulated_workers_equal_processes(tmp_path: Path) -> None:
    names = [*SAME_BITS, *ROUNDED]
    run(tmp_path / "real", {name: real(name) for name in names})
    run(tmp_path / "simulated", {name: simulated(real(name)) for name in names})
    for name in SAME_BITS:
        found, wanted = tmp_path / "simulated" / name, tmp_path / "real" / name
        assert [worker["model"].keys() for worker in last(found)] == [worker["model"].keys() for worker in last(wanted)]
        for one, other in zip(last(found), last(wanted), strict=True):
            assert all(torch.equal(value, other["model"][key]) for key, value in one["model"].items()), name
        rows = [pd.read_csv(of / "metrics.csv") for of in (found, wanted)]
        for column in ("train_loss", "val_loss", "val_acc1", "consensus_distance", "neighbour_distance", "sent_mb"):
            assert rows[0][column].tolist() == pytest.approx(rows[1][column].tolist(), rel=1e-5), (name, column)
    for name in ROUNDED:
        for one, other in zip(last(tmp_path / "simulated" / name), last(tmp_path / "real" / name), strict=True):
            for key, value in one["model"].items():
                difference = (value.double() - other["model"][key].double()).square().mean().sqrt()
                assert difference <= 3e-5 * other["model"][key].double().square().mean().sqrt(), (name, key)  # 3e-6


@pytest.mark.parametrize(
    "name", ["bf16 groups", *(pytest.param(name, marks=pytest.mark.slow) for name in ("streaming", "push_sum"))]
)
def test_either_goes_on_from_the_others_checkpoint(name: str, tmp_path: Path) -> None:
    config, stop = real(name), STEPS_PER_EPOCH + 2
    run(tmp_path / "undisturbed", {name: simulated(config)})
    run(tmp_path / "real first", {name: config}, stop)
    run(tmp_path / "real first", {name: simulated(config)})
    run(tmp_path / "simulated first", {name: simulated(config)}, stop)
    run(tmp_path / "simulated first", {name: config})
    for folder in ("real first", "simulated first"):
        (said,) = read_json(tmp_path / folder / name / "run.json")["resumed"]
        assert said.endswith("every worker goes on exactly")
        for one, other in zip(last(tmp_path / folder / name), last(tmp_path / "undisturbed" / name), strict=True):
            assert all(torch.equal(value, other["model"][key]) for key, value in one["model"].items())


INTERRUPTED = ("static-ring", "random", "adaptive", "outer", "streaming bf16", "push_sum")
"""One of each kind of state that a worker has, and a message that is under way; the others are of the same kinds."""
OTHERS = ("complete", "allreduce", *(name for name in AVERAGING if name not in INTERRUPTED))


@pytest.mark.parametrize("names", [INTERRUPTED, pytest.param(OTHERS, marks=pytest.mark.slow)], ids=["one each", "more"])
def test_an_interrupted_simulation_equals_an_undisturbed_one(names: tuple[str, ...], tmp_path: Path) -> None:
    configs = {name: simulated(real(name)) for name in names}
    run(tmp_path / "undisturbed", configs)
    run(tmp_path / "interrupted", configs, STEPS_PER_EPOCH + 2)
    run(tmp_path / "interrupted", configs)
    for name in configs:
        steps = assert_same(tmp_path / "interrupted" / name, tmp_path / "undisturbed" / name)
        assert steps == STEPS_PER_EPOCH * NUM_EPOCHS


def test_a_simulation_goes_on_with_other_workers_from_the_average(tmp_path: Path) -> None:
    run(tmp_path / "run", {"ring": simulated(real("ring"), 4)}, STEPS_PER_EPOCH + 2)
    run(tmp_path / "run", {"ring": simulated(real("ring"), 12)})
    (said,) = read_json(tmp_path / "run" / "ring" / "run.json")["resumed"]
    assert "4 workers wrote it, 12 go on from their averaged model" in said
    assert len(last(tmp_path / "run" / "ring")) == 12
