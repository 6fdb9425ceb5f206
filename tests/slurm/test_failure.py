"""What happens to a job when one of its workers, or a node, comes to a bad end."""

import signal
from pathlib import Path

import pytest

from tests.slurm.conftest import QUICK, User, job_id, run_json, wait_for_end, wait_until
from tests.slurm.private import SLURMD_TIMEOUT_S, command_of, environment_of

pytestmark = pytest.mark.slurm
BEGIN = "                run(config, runtime, run_dir, stop, watch)\n"
ON_SECOND_NODE = """\
                if runtime.rank == 5:
                    (run_dir / "now").touch()
                    {what}
"""
FOR_SECOND_SEED = """\
                if config.seed == 2:
                    raise RuntimeError('seed 2')
"""
DEATHS = {
    "raises": (
        "raise RuntimeError('unwell')",
        "rank 5 failed: RuntimeError: unwell",
    ),
    "is killed": ("os.kill(os.getpid(), signal.SIGKILL)", "rank 5 failed: killed"),
}


def _is_over(user: User, run_dir: Path) -> bool:
    state = user.slurm.ask("squeue", "-h", "-t", "all", "-j", job_id(run_dir), "-o", "%T").strip()
    return state not in ("PENDING", "RUNNING", "COMPLETING")


def _commands_of_tasks(user: User, run_dir: Path) -> list[list[str]]:
    """The command lines of the tasks that ``srun`` has started for a run, as the process table has them."""
    of_run = f"IMGNET_RUN_DIR={run_dir}".encode()
    commands = [command_of(pid) for pid in user.slurm.processes() if of_run in environment_of(pid)]
    return [[word.decode() for word in command if word] for command in commands if command[0] != b"srun"]


@pytest.mark.parametrize("death", DEATHS)
def test_worker_of_second_node_ends_the_job(developer: User, death: str) -> None:
    what, expected = DEATHS[death]
    developer.edit("imgnet/launch/workers/worker.py", BEGIN, ON_SECOND_NODE.format(what=what) + BEGIN)
    command = developer.start_run_py(*QUICK, "cluster=8xA40", "cluster.wait=true")
    wait_until(lambda: len(developer.runs()) == 1, "a run directory")
    (run_dir,) = developer.runs()
    wait_until((run_dir / "now").exists, "the worker is about to fail")
    seconds = wait_until(lambda: _is_over(developer, run_dir), "the job is over")
    assert seconds < 30
    assert "JobState=FAILED" in developer.slurm.ask("scontrol", "show", "job", job_id(run_dir))
    wait_for_end(run_dir)
    assert run_json(run_dir)["status"] == "failed"
    assert run_json(run_dir)["error"].startswith(expected)
    out, error = command.communicate(timeout=30)
    assert command.returncode == 1, error
    assert expected in out + error
    status = developer.imgnet("status")
    assert f"{expected}" in status.stdout
    assert "logs/slurm.log" in status.stdout


def test_dead_node_ends_the_job(user: User) -> None:
    once = ("cluster.max_num_timeout=0", "cluster.wait=true")  # else Slurm starts it again on another node
    command = user.start_run_py(*QUICK, "epochs=2000", "cluster=8xA40", *once)
    wait_until(lambda: len(user.runs()) == 1, "a run directory")
    (run_dir,) = user.runs()
    wait_until((run_dir / "metrics.csv").exists, "training has begun")
    first, second = run_json(run_dir)["hosts"]
    assert first != second
    user.slurm.signal_jobs(second, signal.SIGSTOP)  # the first node hears nothing more, as after a power cut
    user.slurm.kill_daemon(second)
    try:
        seconds = wait_until(lambda: _is_over(user, run_dir), "the job is over")
        assert seconds < 30 + 3 * SLURMD_TIMEOUT_S
        _, error = command.communicate(timeout=30)
        assert command.returncode == 1, error
        assert (run_json(run_dir)["status"], run_json(run_dir)["error"]) == ("failed", f"Slurm lost node {second}")
        assert f"Slurm lost node {second}" in user.imgnet("status").stdout
    finally:
        user.slurm.signal_jobs(second, signal.SIGCONT)
        user.slurm.start_node(second)
        user.slurm.wait_for_nodes("idle", timeout_s=60)


def test_waiting_sweep_names_failed_runs_and_resubmit_makes_them(developer: User) -> None:
    developer.edit("imgnet/launch/workers/worker.py", BEGIN, FOR_SECOND_SEED + BEGIN)
    sweep = (*QUICK, "max_steps=30", "seed=1,2", "cluster=4xA40")
    waited = developer.run_py(*sweep, "cluster.wait=true")
    assert waited.returncode == 1
    first, second = developer.runs()
    assert "1 of 2 runs failed" in waited.stderr
    assert f"{second}: " in waited.stderr
    assert f"{first}: " not in waited.stderr
    assert "RuntimeError: seed 2" in developer.imgnet("logs", str(second)).stdout

    developer.edit("imgnet/launch/workers/worker.py", "raise RuntimeError('seed 2')", "pass")
    again = developer.imgnet("resubmit", str(first.parent))
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("submitted job") == 1
    assert "1 run with" in again.stdout
    followed = developer.imgnet("logs", "-f", str(second))
    assert "epoch 2/3" in followed.stdout
    assert run_json(second)["status"] == "completed"
    assert "nothing to submit" in developer.imgnet("resubmit", str(first.parent)).stdout


def test_each_worker_is_run_py_and_a_cancelled_run_says_so(user: User) -> None:
    submitted = user.run_py(*QUICK, "epochs=2000", "cluster=4xA40")
    assert submitted.returncode == 0, submitted.stderr
    (run_dir,) = user.runs()
    wait_until((run_dir / "metrics.csv").exists, "training has begun")
    run_py = [str(run_dir.parent / "code/run.py"), *run_json(run_dir)["overrides"]]
    assert [command[-len(run_py) :] for command in _commands_of_tasks(user, run_dir)] == 4 * [run_py]
    assert user.imgnet("cancel", str(run_dir)).returncode == 0
    wait_for_end(run_dir, timeout_s=30)
    assert "cancelled" in run_json(run_dir)["error"]
    nothing = user.imgnet("cancel", str(run_dir))
    assert (nothing.returncode, nothing.stderr) == (2, "none of these runs is in Slurm's queue\n")
