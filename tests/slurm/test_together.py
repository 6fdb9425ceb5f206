"""Runs of one sweep that have to do with each other: they share a job, end together, and something comes after them."""

import json
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.slurm.conftest import QUICK, User, job_id, run_json, wait_for_end, wait_until

pytestmark = pytest.mark.slurm
ONE_GPU = (*QUICK, "cluster=4xA40", "cluster.gpus_per_node=1")
TWO_GPUS = (*QUICK, "cluster=4xA40", "cluster.gpus_per_node=2")
"""Of runs that do not share a job: each worker alone would compute on all cores, and runs have none of their own."""
STATUSES = (
    "import glob, json, sys;"
    "runs = glob.glob(glob.escape(sys.argv[1]) + '/*/run.json');"
    "print(*sorted(json.load(open(run))['status'] for run in runs), file=open('after', 'a'))"
)
"""A program that writes a line with the state of each run."""
AFTER = f"on_sweep_end='{sys.executable}' -c \"{STATUSES}\" {{sweep}}"


def submit(user: User, *words: str) -> list[Path]:
    submitted = user.run_py(*words)
    assert submitted.returncode == 0, submitted.stderr
    return user.runs()


def statuses(runs: list[Path]) -> list[str]:
    return [run_json(run)["status"] for run in runs]


def errors(runs: list[Path]) -> list[str]:
    return [run_json(run)["error"] or "" for run in runs]


def wait_until_all_train(runs: list[Path]) -> None:
    wait_until(lambda: all((run / "metrics.csv").exists() for run in runs), "all train")


def test_four_runs_share_a_job_and_its_gpu(user: User) -> None:
    runs = submit(user, *ONE_GPU, "seed=1,2,3,4", "cluster.runs_per_job=4")
    (job,) = {job_id(run) for run in runs}
    assert "gpu:A40:1" in user.slurm.ask("scontrol", "show", "job", job)
    wait_for_end(*runs)
    assert statuses(runs) == ["completed"] * 4, errors(runs)
    begin, end = ([run_json(run)[key] for run in runs] for key in ("start", "end"))
    assert max(begin) < min(end), "one after the other"
    assert [len(pd.read_csv(run / "metrics.csv")) for run in runs] == [3] * 4
    assert [run_json(run)["seed"] for run in runs] == [1, 2, 3, 4]


def test_runs_that_share_a_job_are_queued_again_together_and_ended_ones_stay(user: User) -> None:
    rates = "optimizer.lr=1e30,0.01,0.02,0.03,0.04"
    runs = submit(user, *ONE_GPU, rates, "cluster.runs_per_job=3", "epochs=40", "checkpoint.every_min=0.05")
    assert len({job_id(run) for run in runs}) == 2
    shared = runs[:3]
    assert len({job_id(run) for run in shared}) == 1
    wait_until_all_train(runs[1:])
    wait_until(lambda: run_json(runs[0])["status"] == "failed", "the first fails")
    user.slurm.ask("scancel", "--signal=USR2", job_id(runs[0]))
    wait_until(lambda: all(run_json(run).get("requeues") == 1 for run in shared[1:]), "both are queued again")
    wait_for_end(*runs, timeout_s=400)
    assert statuses(runs) == ["failed", *["completed"] * 4], errors(runs)
    assert "training loss" in run_json(runs[0])["error"]
    assert not run_json(runs[0]).get("requeues")
    assert [len(pd.read_csv(run / "metrics.csv")) for run in runs[1:]] == [40] * 4
    status = user.imgnet("status")
    assert status.stdout.count("completed") >= 4, status.stdout


def test_a_shared_job_is_cancelled_for_all_or_not_at_all(user: User) -> None:
    runs = submit(user, *ONE_GPU, "seed=1,2", "cluster.runs_per_job=2", "epochs=100000")
    wait_until_all_train(runs)
    refused = user.imgnet("cancel", str(runs[1]))
    assert refused.returncode == 2
    assert f"shares job {job_id(runs[0])} with" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert statuses(runs) == ["running"] * 2
    cancelled = user.imgnet("cancel", str(runs[0].parent))
    assert cancelled.returncode == 0, cancelled.stderr
    wait_for_end(*runs, timeout_s=60)
    assert statuses(runs) == ["cancelled"] * 2
    assert errors(runs) == ["cancelled with imgnet cancel"] * 2


def test_a_time_limit_is_told_of_all_that_share_a_job(user: User) -> None:
    once = ("cluster.max_num_timeout=0", "cluster.timeout_min=1", "epochs=100000")
    runs = submit(user, *ONE_GPU, "seed=1,2", "cluster.runs_per_job=2", *once)
    wait_until(lambda: not user.slurm.ask("squeue", "-h"), "the job is over")
    assert statuses(runs) == ["preempted"] * 2  # saved, and asked to leave it at that
    assert all("time limit" in error for error in errors(runs)), errors(runs)


@pytest.mark.parametrize("wait", ["false", "true"])
def test_the_first_failure_ends_a_sweep(user: User, wait: str) -> None:
    rates = "optimizer.lr=1e30,0.01,0.02,0.03,0.04,0.05,0.06,0.07"
    sweep = (*TWO_GPUS, rates, "epochs=100000", "fail_fast=true", "cluster.array_parallelism=4", f"cluster.wait={wait}")
    submitted = user.run_py(*sweep)
    assert submitted.returncode == (1 if wait == "true" else 0), submitted.stderr
    runs = user.runs()
    wait_for_end(*runs)
    assert statuses(runs) == ["failed", *["cancelled"] * 7], errors(runs)
    assert all("since run 0 failed and fail_fast=true" in error for error in errors(runs)[1:]), errors(runs)
    said = (runs[0] / "logs/slurm.log").read_text()
    assert said.count("cancelled, since fail_fast=true") == 7, said
    wait_until(lambda: not user.slurm.ask("squeue", "-h"), "no job is left")


def test_a_command_runs_once_after_the_last_run(user: User) -> None:
    """Also where a run was queued again, one failed, and one is resubmitted."""
    rates = "optimizer.lr=1e30,0.01,0.02"
    runs = submit(user, *TWO_GPUS, rates, "epochs=30", "checkpoint.every_min=0.05", AFTER)
    memory = json.loads((runs[0].parent / "sweep.json").read_text())
    wait_until_all_train(runs[1:])
    user.slurm.ask("scancel", "--signal=USR2", job_id(runs[1]))
    wait_until(lambda: run_json(runs[1]).get("requeues") == 1, "it is queued again")
    after = user.folder / "after"
    wait_until(after.exists, "the command runs", timeout_s=400)
    wait_until(lambda: not user.slurm.ask("squeue", "-h"), "no job is left")
    assert after.read_text() == "completed completed failed\n", errors(runs)
    assert user.slurm.ask("squeue", "-h", "-t", "all", "-j", memory["last_job"], "-o", "%T").strip() == "COMPLETED"
    again = user.imgnet("resubmit", str(runs[0].parent))
    assert again.returncode == 0, again.stderr
    wait_until(lambda: after.read_text().count("\n") == 2, "the command runs again")
    assert after.read_text() == 2 * "completed completed failed\n"


def test_a_command_that_slurm_would_not_run_is_refused_with_the_sweep(user: User) -> None:
    dry = user.run_py(*ONE_GPU, AFTER, "cluster.dry_run=true")
    assert "# batch script after the last run" in dry.stdout
    assert f"{sys.executable} -c " in dry.stdout
    refused = user.run_py(*ONE_GPU, "on_sweep_end=imgnt results {sweep}")
    assert refused.returncode == 2
    assert refused.stderr == "on_sweep_end='imgnt results {sweep}': there is no command 'imgnt' on the path\n"
    assert not (user.folder / "multirun_outputs").exists()


def test_without_scontrol_on_a_node_a_run_that_saved_waits_for_resubmit(user: User, tmp_path: Path) -> None:
    commands = tmp_path / "bin"
    commands.mkdir()
    for name in ("srun", "squeue", "sacct", "scancel", "git", "cat", "env"):
        if (found := shutil.which(name)) is not None:
            (commands / name).symlink_to(found)
    (run,) = submit(
        user, *TWO_GPUS, "epochs=40", "checkpoint.every_min=0.05", f'cluster.setup=["export PATH={commands}"]'
    )
    wait_until_all_train([run])
    user.slurm.ask("scancel", "--signal=USR2", job_id(run))
    wait_until(lambda: not user.slurm.ask("squeue", "-h"), "the job is over")
    assert run_json(run)["status"] == "preempted"
    assert "there is no scontrol on the path" in run_json(run)["error"]
    assert "imgnet resubmit" in user.imgnet("status").stdout
    again = user.imgnet("resubmit", str(run))
    assert again.returncode == 0, again.stderr
    wait_for_end(run)
    assert statuses([run]) == ["completed"], errors([run])
    assert len(pd.read_csv(run / "metrics.csv")) == 40
