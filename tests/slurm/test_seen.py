"""How soon an end is seen on a Slurm without accounting, however it came about, and whoever submitted the job."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from imgnet.launch.slurm.commands import OVER
from tests.slurm.conftest import QUICK, User, run_json, wait_until
from tests.slurm.private import NODES, environment_of

pytestmark = pytest.mark.slurm
SEEN_WITHIN_S = 30.0
"""It takes less than ten on an idle machine; asking accounting alone, submitit would need minutes."""
COMMANDS = {
    "cluster.wait": ("cluster=4xA40", "cluster.gpus_per_node=2", "cluster.max_num_timeout=0", "cluster.wait=true"),
    "submitit_slurm": (
        "hydra/launcher=submitit_slurm",
        "hydra.launcher.partition=gpu",
        "hydra.launcher.tasks_per_node=2",
        "+hydra.launcher.additional_parameters.no-requeue=true",
    ),
}


def complete(user: User, job: str) -> None:
    """It does so by itself."""


def fail(user: User, job: str) -> None:
    marks = {f"SLURM_JOB_ID={job}".encode(), b"SLURM_PROCID=1"}
    os.kill(max(pid for pid in user.slurm.processes() if marks <= set(environment_of(pid))), signal.SIGKILL)


def cancel(user: User, job: str) -> None:
    user.slurm.ask("scancel", job)


def lose_its_node(user: User, job: str) -> None:
    node = user.slurm.ask("squeue", "-h", "-j", job, "-o", "%N").strip()
    if node in user.slurm.daemons:
        user.slurm.kill_node(node)


LOST = "Slurm lost a node"
KILLED = "rank 1 failed: killed"
# Of a cancelled job, the workers of submitit's know the signal alone.
ENDS: dict[str, tuple[Callable[[User, str], None], dict[str, str], dict[str, str]]] = {
    "COMPLETED": (complete, dict.fromkeys(COMMANDS, "completed"), dict.fromkeys(COMMANDS, "")),
    "FAILED": (fail, dict.fromkeys(COMMANDS, "failed"), dict.fromkeys(COMMANDS, KILLED)),
    "CANCELLED": (
        cancel,
        {"cluster.wait": "cancelled", "submitit_slurm": "failed"},
        {"cluster.wait": "the job was cancelled", "submitit_slurm": "ended by SIGTERM"},
    ),
    "NODE_FAIL": (lose_its_node, dict.fromkeys(COMMANDS, "failed"), dict.fromkeys(COMMANDS, LOST)),
}


def state_of(user: User, job: str) -> str:
    return user.slurm.ask("squeue", "-h", "-t", "all", "-j", job, "-o", "%T").strip()


@dataclass
class Waiting:
    """A command that waits for its job, which trains."""

    how: str
    command: subprocess.Popen[str]
    run_dir: Path
    job: str
    over: float = 0.0
    """When Slurm said that the job is over."""
    seen: float = 0.0
    """When the command ended."""

    def has_ended(self, user: User) -> bool:
        if not self.over and state_of(user, self.job) in OVER:
            self.over = time.monotonic()
        if not self.seen and self.command.poll() is not None:
            self.seen = time.monotonic()
        return bool(self.over and self.seen)


def start(user: User, how: str, epochs: str) -> Waiting:
    runs, jobs = set(user.runs()), set(user.slurm.ask("squeue", "-h", "-o", "%A").split())
    command = user.start_run_py(*QUICK, *COMMANDS[how], epochs)
    wait_until(lambda: bool(set(user.runs()) - runs) or command.poll() is not None, "a run directory")
    assert command.poll() is None, "the command ended before its job began"
    (run_dir,) = set(user.runs()) - runs
    (job,) = set(user.slurm.ask("squeue", "-h", "-o", "%A").split()) - jobs
    return Waiting(how, command, run_dir, job)


@pytest.fixture
def nodes(user: User) -> Iterator[None]:
    yield
    for node in NODES:
        if node not in user.slurm.daemons:
            user.slurm.start_node(node)
    user.slurm.wait_for_nodes("idle", timeout_s=60)


@pytest.mark.usefixtures("nodes")
@pytest.mark.parametrize("end", ENDS)
def test_an_end_is_seen_in_seconds(user: User, end: str) -> None:
    bring_about, wanted, said = ENDS[end]
    all_waiting = [start(user, how, "epochs=20" if end == "COMPLETED" else "epochs=100000") for how in COMMANDS]
    wait_until(lambda: all((one.run_dir / "metrics.csv").exists() for one in all_waiting), "all train")
    for one in all_waiting:
        bring_about(user, one.job)
    wait_until(lambda: sum(one.has_ended(user) for one in all_waiting) == len(all_waiting), "all have ended")
    begin, shown = time.monotonic(), user.imgnet("status").stdout
    print(f"{end}: imgnet status took {time.monotonic() - begin:.1f} s")
    for one in all_waiting:
        print(f"{end}: {one.how} after {one.seen - one.over:.1f} s")
        assert state_of(user, one.job) == end
        assert one.command.returncode == (0 if end == "COMPLETED" else 1)
        assert one.seen - one.over < SEEN_WITHIN_S
        run = run_json(one.run_dir)
        assert (run["status"], (run["error"] or "").startswith(said[one.how])) == (wanted[one.how], True), run
        assert run["status"] in shown
