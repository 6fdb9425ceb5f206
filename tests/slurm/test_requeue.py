"""A run that Slurm ends comes back by itself, and ends with the same bits as one that was left alone."""

import signal
from pathlib import Path

import pandas as pd
import pytest

from tests.distributed.test_resume import assert_same
from tests.slurm.conftest import LIMIT_S, User, job_id, run_json, wait_until

pytestmark = pytest.mark.slurm
NUM_EPOCHS = 60
RUN = ("+experiments=quickstart", f"epochs={NUM_EPOCHS}", "cluster=4xA40", "checkpoint.every_min=0.05")


def submit(user: User, *more: str) -> Path:
    before = set(user.runs())
    submitted = user.run_py(*RUN, *more)
    assert submitted.returncode == 0, submitted.stderr
    (run_dir,) = set(user.runs()) - before
    return run_dir


def wait_for_epoch(run_dir: Path, epoch: int) -> None:
    def there() -> bool:
        file = run_dir / "metrics.csv"
        return file.exists() and len(file.read_text().splitlines()) > epoch

    wait_until(there, f"epoch {epoch}")


def wait_for_completion(run_dir: Path, timeout_s: float = LIMIT_S) -> None:
    wait_until(lambda: run_json(run_dir)["status"] == "completed", f"{run_dir} completes", timeout_s)


def assert_equal_runs(found: Path, wanted: Path, num_epochs: int = NUM_EPOCHS) -> None:
    assert_same(found, wanted)
    assert len(pd.read_csv(found / "metrics.csv")) == num_epochs


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, Path]:
    """The run that the others are compared with, made by the first test that needs it."""
    return {}


def reference(user: User, undisturbed: dict[str, Path]) -> Path:
    if "run" not in undisturbed:
        undisturbed["run"] = submit(user)
        wait_for_completion(undisturbed["run"])
    return undisturbed["run"]


def disturb_usr2(user: User, run_dir: Path) -> None:
    user.slurm.ask("scancel", "--signal=USR2", job_id(run_dir))


def disturb_requeue(user: User, run_dir: Path) -> None:
    user.slurm.ask("scontrol", "requeue", job_id(run_dir))


def disturb_power_cut(user: User, run_dir: Path) -> None:
    (node,) = run_json(run_dir)["hosts"]
    user.slurm.kill_node(node)
    wait_until_down(user, node)
    user.slurm.start_node(node)


def disturb_slurmd(user: User, run_dir: Path) -> None:
    """A node that hangs, and wakes without its slurmd when Slurm has given it up and queued the job again."""
    (node,) = run_json(run_dir)["hosts"]
    user.slurm.signal_jobs(node, signal.SIGSTOP)
    user.slurm.kill_daemon(node)
    wait_until_down(user, node)
    user.slurm.signal_jobs(node, signal.SIGCONT)
    user.slurm.start_node(node)


def wait_until_down(user: User, node: str) -> None:
    wait_until(
        lambda: user.slurm.ask("sinfo", "-h", "-n", node, "-o", "%T").strip("*\n ") == "down", "the node is down"
    )


@pytest.mark.parametrize("disturb", [disturb_usr2, disturb_requeue, disturb_power_cut, disturb_slurmd])
def test_a_disturbed_job_comes_back_and_equals_the_undisturbed(
    disturb: object, user: User, undisturbed: dict[str, Path]
) -> None:
    wanted = reference(user, undisturbed)
    run_dir = submit(user, "skip_completed=false")
    wait_for_epoch(run_dir, 5)
    disturb(user, run_dir)  # type: ignore[operator]
    wait_for_completion(run_dir)
    assert any("every worker goes on exactly" in line for line in run_json(run_dir)["resumed"])
    assert_equal_runs(run_dir, wanted)


@pytest.mark.timeout(1500)
def test_a_run_that_reaches_its_time_limit_goes_on_and_equals_the_undisturbed(user: User) -> None:
    long = f"epochs={2 * NUM_EPOCHS}"
    often = ("cluster.max_num_timeout=20",)  # a busy machine reaches the limit again and again
    wanted = submit(user, long)
    run_dir = submit(user, long, "skip_completed=false", "cluster.timeout_min=2", "cluster.signal_delay_s=60", *often)
    wait_until(lambda: run_json(run_dir).get("requeues", 0) >= 1, "Slurm's notice", timeout_s=LIMIT_S)
    for run in (wanted, run_dir):
        wait_for_completion(run, timeout_s=2 * LIMIT_S)
    assert any("every worker goes on exactly" in line for line in run_json(run_dir)["resumed"])
    assert_equal_runs(run_dir, wanted, 2 * NUM_EPOCHS)
