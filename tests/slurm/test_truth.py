"""What is said of a run is true whatever Slurm, or a user, does to its job; and a directory is one job's alone."""

import hashlib
import os
import re
import shutil
import signal
from pathlib import Path

import pandas as pd
import pytest

from tests.commands import ROOT
from tests.disks import mounted
from tests.slurm.conftest import QUICK, User, job_id, run_json, wait_for_end, wait_until
from tests.slurm.private import PrivateSlurm, command_of
from tests.test_full_disk import fill

pytestmark = pytest.mark.slurm
LONG = (*QUICK, "epochs=2000", "cluster=4xA40")
HELD = "+cluster.additional_parameters.hold=true"


def submit(user: User, *arguments: str) -> list[Path]:
    submitted = user.run_py(*arguments)
    assert submitted.returncode == 0, submitted.stderr
    return user.runs()


def state_of(user: User, job: str) -> str:
    return user.slurm.ask("squeue", "-h", "-r", "-t", "all", "-j", job, "-o", "%T").strip()


def wait_for_rows(run_dir: Path) -> None:
    file = run_dir / "metrics.csv"
    wait_until(lambda: file.exists() and len(file.read_text().splitlines()) > 2, f"rows in {file}")


def fingerprint(run_dir: Path) -> dict[str, str]:
    """All files of a run, but for the one that Slurm itself writes."""
    files = [path for path in run_dir.rglob("*") if path.is_file() and path.name != "slurm.log"]
    return {str(path.relative_to(run_dir)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_job_that_slurm_queues_again_is_alive(user: User) -> None:
    waiting = user.start_run_py(*LONG, "cluster.wait=true")
    wait_until(lambda: len(user.runs()) == 1, "a run directory")
    (run_dir,) = user.runs()
    wait_for_rows(run_dir)
    following = user.start_imgnet("logs", "-f", str(run_dir))
    user.slurm.ask("scontrol", "requeuehold", job_id(run_dir))
    wait_until(lambda: state_of(user, job_id(run_dir)) == "PENDING", "Slurm has queued it again")
    assert run_json(run_dir)["status"] == "queued"
    assert "PENDING (job requeued in held state)" in user.imgnet("status").stdout
    assert "skipped, on its way" in user.run_py(*LONG).stdout
    again = user.imgnet("resubmit", str(run_dir))
    assert (
        f"nothing to submit: no run of {run_dir.parent.relative_to(user.folder)} failed or is missing" in again.stdout
    )
    assert f"is job {job_id(run_dir)}, PENDING" in again.stdout
    assert (waiting.poll(), following.poll()) == (None, None)

    user.slurm.ask("scontrol", "release", job_id(run_dir))
    wait_until(lambda: run_json(run_dir)["status"] == "running", "it goes on")
    user.slurm.ask("scontrol", "requeuehold", job_id(run_dir))
    wait_until(lambda: state_of(user, job_id(run_dir)) == "PENDING", "Slurm has queued it again")
    cancelled = user.imgnet("cancel", str(run_dir))
    assert cancelled.returncode == 0, cancelled.stderr
    assert run_json(run_dir)["status"] == "cancelled"
    assert waiting.wait(timeout=60) == 1
    assert following.wait(timeout=60) == 0
    assert user.runs() == [run_dir]


def test_a_directory_is_its_own_jobs_alone(user: User) -> None:
    (run_dir,) = submit(user, *QUICK, "cluster=4xA40", HELD)
    script = str(next((run_dir.parent / "slurm").iterdir()))
    other, before = user.slurm.ask("sbatch", "--parsable", "--hold", script).strip(), job_id(run_dir)
    user.slurm.ask("scontrol", "release", f"{before},{other}")  # both at once
    wait_for_end(run_dir)
    wait_until(lambda: state_of(user, other) == "FAILED", "the other job leaves")
    wait_until(lambda: state_of(user, before) == "COMPLETED", "the job has ended")
    run = run_json(run_dir)
    assert (run["status"], run["slurm_job_id"], run["earlier"]) == ("completed", before, [])
    assert pd.read_csv(run_dir / "metrics.csv")["epoch"].tolist() == [1, 2, 3]
    log = run_dir / "logs" / "slurm.log"
    assert f"job {other} of cluster private leaves the run as it is: {run_dir} was submitted as job {before}" in (
        log.read_text()
    )

    files = fingerprint(run_dir)
    user.slurm.ask("scontrol", "requeue", before)
    wait_until(lambda: "leaves: the run is completed" in log.read_text(), "the job begins once more, and leaves")
    wait_until(lambda: state_of(user, before) == "COMPLETED", "the job has ended")
    assert fingerprint(run_dir) == files
    assert "completed" in user.imgnet("status").stdout


def test_the_code_of_a_waiting_job_is_deleted(user: User) -> None:
    (run_dir,) = submit(user, *QUICK, "cluster=4xA40", HELD)
    shutil.rmtree(run_dir.parent / "code")
    user.slurm.ask("scontrol", "release", job_id(run_dir))
    wait_for_end(run_dir)
    run = run_json(run_dir)
    assert run["status"] == "failed"
    assert run["error"].startswith(f"{run_dir.parent / 'code'} is gone")
    assert not (run_dir / "metrics.csv").exists()
    assert "resubmit" in user.imgnet("status").stdout


def test_another_slurm_leaves_a_run_alone(user: User) -> None:
    (run_dir,) = submit(user, *LONG)
    wait_until(lambda: run_json(run_dir)["status"] == "running", "the job begins")
    with PrivateSlurm("elsewhere") as slurm:
        there = User(slurm, user.folder, user.code)
        assert "running (job of cluster private, which alone knows it)" in there.imgnet("status").stdout
        assert run_json(run_dir)["status"] == "running"
        for command in ("cancel", "resubmit"):
            refused = there.imgnet(command, str(run_dir))
            assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stdout
            assert "job of cluster private" in refused.stderr
        assert "skipped, on its way" in there.run_py(*LONG).stdout
    user.slurm.ask("scancel", job_id(run_dir))
    wait_for_end(run_dir)
    assert run_json(run_dir)["status"] == "cancelled"


def test_cancelled_is_said_of_all_that_were(user: User) -> None:
    runs = submit(user, *LONG, "seed=1,2,3", HELD)
    first, second, third = runs
    user.slurm.ask("scontrol", "release", job_id(first))
    assert user.imgnet("cancel", str(second)).returncode == 0
    user.slurm.ask("scancel", job_id(third))  # Slurm keeps nothing of a part of an array that only waited
    wait_for_rows(first)
    shown = user.imgnet("status").stdout
    assert [run_json(run)["status"] for run in runs] == ["running", "cancelled", "cancelled"]
    assert run_json(second)["error"] == "cancelled with imgnet cancel"
    assert "cancelled" in run_json(third)["error"]
    assert "LOST" not in shown
    assert "slurm.log" not in shown
    assert user.imgnet("cancel", str(first)).returncode == 0
    wait_for_end(first, timeout_s=60)
    assert (run_json(first)["status"], run_json(first)["error"]) == ("cancelled", "cancelled with imgnet cancel")
    nothing = user.imgnet("cancel", str(first.parent))
    assert (nothing.returncode, nothing.stderr) == (2, "none of these runs is in Slurm's queue\n")
    wait_until(lambda: state_of(user, job_id(first)) == "CANCELLED", "the job has ended")
    again = user.imgnet("resubmit", str(first.parent))
    assert "3 runs with" in again.stdout, again.stderr
    assert {run_json(run)["status"] for run in runs} <= {"queued", "running"}


def test_a_killed_first_process_is_named(user: User) -> None:
    (run_dir,) = submit(user, *LONG)
    wait_for_rows(run_dir)
    words = ["-P", str(run_dir.parent / "code/run.py"), *run_json(run_dir)["overrides"]]
    commands = [[word.decode() for word in command_of(pid)][:-1] for pid in user.slurm.processes()]
    assert sum(command[1:] == words for command in commands) == 4, commands  # each worker executes run.py
    os.kill(user.slurm.first_process(run_dir), signal.SIGKILL)
    wait_for_end(run_dir, timeout_s=60)  # nobody looks
    run = run_json(run_dir)
    said = f"the job's first process (imgnet.launch.slurm.job) was killed on {run['hosts'][0]}"
    assert (run["status"], run["error"]) == ("failed", said)
    wait_until(lambda: state_of(user, job_id(run_dir)) == "FAILED", "the job has ended")
    assert said in user.imgnet("status").stdout


def test_another_launcher_does_not_pass_for_a_submission(user: User) -> None:
    refused = user.run_py(*QUICK, "cluster=4xA40", "hydra/launcher=basic")
    said = "cluster=4xA40: hydra/launcher=basic submits nothing to Slurm; leave it out, or choose cluster=local\n"
    assert (refused.returncode, refused.stderr) == (2, said)
    assert user.runs() == []
    assert not user.slurm.ask("squeue", "-h")


@pytest.mark.timeout(300)
def test_a_full_disk_takes_no_job_and_hides_none(slurm: PrivateSlurm, tmp_path: Path, digits_root: Path) -> None:
    with mounted(tmp_path / "disk", megabytes=40) as disk:
        user = User(slurm, disk, ROOT)
        (disk / "data").mkdir()
        (disk / "data" / "digits").symlink_to(digits_root)
        filler = disk / "somebody else's"
        fill(filler)
        refused = user.run_py(*LONG)
        assert refused.returncode == 2
        assert re.fullmatch(r"nothing is submitted: .*: No space left on device \(errno 28\)\n", refused.stderr)
        assert not slurm.ask("squeue", "-h", "-t", "PENDING,RUNNING")
        assert sorted(disk.iterdir()) == sorted([disk / "data", filler])
        filler.unlink()
        (run_dir,) = submit(user, *LONG)
        wait_for_rows(run_dir)
        fill(filler)
        assert "RUNNING" in user.imgnet("status").stdout
        slurm.ask("scancel", job_id(run_dir))
        wait_until(lambda: state_of(user, job_id(run_dir)) == "CANCELLED", "the job has ended")
        shown = user.imgnet("status")
        assert (shown.returncode, shown.stderr) == (0, "")
        assert "cancelled" in shown.stdout
