"""Simulated workers beside the time that a described cluster would take: what is written, drawn and refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from imgnet.cli import app
from imgnet.config import ConfigError, RunConfig
from imgnet.launch.checks import check
from imgnet.plan.compose import described_cluster
from imgnet.plan.forecast import forecast, predicted_like, undisturbed
from imgnet.plan.predict import predict
from imgnet.plan.source import computation_of
from imgnet.rundir import PREDICTION
from imgnet.tracking.predicted import PREDICTED, PredictedClock
from tests.commands import run_py
from tests.composing import composed
from tests.run_directories import write_run

QUICK = ("+experiments=quickstart", "cluster=simulated", "cluster.num_workers=8", "precision=fp32")
RESNET = ("model=resnet18", "data=synthetic", "precision=fp32", "epochs=10")
WORKERS = ("cluster=simulated", "cluster.num_workers=32", "cluster.accelerator=cpu", "cluster.like=32xT4")


def imgnet(*words: object) -> Result:
    return CliRunner().invoke(app, [*map(str, words)])


def of(*words: str) -> RunConfig:
    return composed(*RESNET, *WORKERS, *words)


def test_it_is_the_prediction_of_the_same_run_on_that_cluster() -> None:
    config = of("topology=ring")
    written = predicted_like(config, config.cluster)
    there = composed(*RESNET, "cluster=32xT4", "precision=fp32", "topology=ring")
    found = predict(undisturbed(there, computation_of(there, None, None)))
    assert written["step_times"] == [(1.0, found.step_s)]
    assert written["cluster"] == found.cluster == "32xT4"
    given = of("topology=ring", "cluster.images_per_s=100")
    slower = predicted_like(given, given.cluster)["step_times"][0][1]
    speed = described_cluster("32xT4").network.relative_speed
    assert slower == pytest.approx(given.global_batch_size / 32 / 100 / speed, rel=0.01)  # nothing but computation


def test_each_topology_of_a_schedule_has_its_own_time() -> None:
    config = of(
        "topology=ring", "topology.schedule=[{after_epochs: 0, topology: complete}, {after_epochs: 4, topology: ring}]"
    )
    written = predicted_like(config, config.cluster)
    alone = [
        predicted_like(one, one.cluster)["step_times"][0][1] for one in (of("topology=complete"), of("topology=ring"))
    ]
    assert [share for share, _ in written["step_times"]] == [0.4, 0.6]
    assert [step_s for _, step_s in written["step_times"]] == pytest.approx(alone)
    clock = PredictedClock(50, written["step_times"])
    steps = np.repeat(alone, [20, 30])
    for step in (0, 1, 20, 21, 50):
        assert clock.at(step) == pytest.approx(steps[:step].sum())


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["cluster.like=33xT4"], "cluster.like=33xT4: there is no such cluster; did you mean '32xT4'?"),
        (["cluster.like=local"], "cluster.like=local: there is no such cluster; known: "),
        (["cluster.like=8xA40"], "cluster.like=8xA40: it has 8 workers, not 32; write cluster.num_workers=8"),
        (
            ["topology=hierarchical"],
            "cluster.like=32xT4: it has nodes of 8 workers, not 32; write cluster.workers_per_node=8",
        ),
        (
            ["cluster.workers_per_node=4"],
            "cluster.like=32xT4: it has nodes of 8 workers, not 4; write cluster.workers_per_node=8",
        ),
        (["model.name=resnet34"], "cluster.like=32xT4: model.name=resnet34: its layers are known only when"),
        (["cluster.like=null", "cluster.images_per_s=9"], "cluster.images_per_s=9 needs cluster.like=<a cluster>"),
        (["cluster.images_per_s=nan"], "cluster.images_per_s=nan must be finite and above 0, or null"),
    ],
)  # fmt: skip
def test_what_cannot_be_predicted_is_refused_in_one_line(words: list[str], line: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check(of(*words))
    assert len(refused.value.problems) == 1, refused.value.problems
    assert refused.value.problems[0].startswith(line)


def test_a_cluster_without_a_network_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    without = composed(*RESNET, "cluster=4xA40", "cluster.network.within_gbit_s=null").cluster
    monkeypatch.setattr("imgnet.plan.forecast.described_cluster", lambda _: without)
    with pytest.raises(ConfigError, match=r"cluster.like=4xA40: cluster=4xA40 does not say what its network carries"):
        check(of("cluster.like=4xA40", "cluster.num_workers=4"))


def test_a_forecast_names_each_kind_of_run_once_and_what_it_cannot_say() -> None:
    known = [composed(*RESNET, "cluster=8xA40", f"seed={seed}") for seed in (1, 2)]
    found = forecast([*known, composed("model.name=resnet34", "cluster=8xA40")])
    assert [one.cluster for one in found.predictions] == ["8xA40"]
    assert len(found.problems) == 1
    assert found.problems[0].startswith("model.name=resnet34: its layers are known only when")


@pytest.mark.parametrize(("requeues", "verdict"), [(3, "allows that"), (2, "is too few")])
def test_a_forecast_warns_of_jobs_that_are_too_short(requeues: int, verdict: str) -> None:
    slow = ("cluster=4xA40", "cluster.network.relative_speed=0.001", "cluster.timeout_min=1000")
    config = composed(*RESNET, *slow, "epochs=1", f"cluster.max_num_timeout={requeues}")
    found = forecast([config])
    (prediction,) = found.predictions
    epochs = round(3.5 * 998 / 60 / prediction.run_h)
    assert forecast([replace(config, epochs=round(1000 / 60 / prediction.run_h) - 1)]).warnings == []
    (line,) = forecast([replace(config, epochs=epochs)]).warnings
    goes_on = "ends a job before that, and it goes on in 3 more"
    assert line.endswith(f"{goes_on}: cluster.max_num_timeout={requeues} {verdict}")
    assert line.startswith("topology=allreduce cluster=4xA40: predicted to train for 5")


@pytest.mark.slow
def test_a_run_is_drawn_over_the_time_that_is_predicted(tmp_path: Path) -> None:
    over_time = ("--x", "predicted_time", "--y", "val_acc1", "-o", str(tmp_path / "a.svg"))
    none = imgnet("plot", write_run(tmp_path / "plain"), *over_time)
    assert (none.exit_code, none.stdout) == (2, "")
    assert none.stderr == "--x predicted_time: no run has it; cluster=simulated cluster.like=32xT4 predicts it\n"
    done = run_py(*QUICK, "cluster.like=8xA40", "epochs=1", "optimizer.warmup_epochs=0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (run_dir,) = (file.parent for file in (tmp_path / "multirun_outputs").rglob("metrics.csv"))
    rows = pd.read_csv(run_dir / "metrics.csv")
    ((share, step_s),) = json.loads((run_dir / PREDICTION).read_text())["step_times"]
    assert share == 1.0
    assert rows[PREDICTED].tolist() == pytest.approx((rows["step"] * step_s).tolist())
    assert imgnet("plot", run_dir, *over_time).exit_code == 0
    assert "predicted training time on 8xA40, s" in (tmp_path / "a.svg").read_text()
    assert "predicted training" in imgnet("results", run_dir).stdout
