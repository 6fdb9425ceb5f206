"""One owner of a directory at a time: who may take it, who is told that it is taken, and what frees it."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from imgnet import rundir
from imgnet.launch import owner
from imgnet.launch.owner import Claim, TakenError, held, is_still_held, last_claim, who_works
from imgnet.launch.slurm import commands as slurm
from imgnet.launch.slurm.commands import JobState
from imgnet.runtime import SlurmJob
from tests.commands import environment

FORK = multiprocessing.get_context("fork")
JOB = SlurmJob("7", "here", attempt=0)


class Contest:
    """Processes that all want one directory at the same moment. Exit status: 0 of the owner, 3 of the others."""

    def __init__(self, run_dir: Path, count: int) -> None:
        self.run_dir, self.count = run_dir, count
        self.start, self.refused = FORK.Barrier(count), FORK.Semaphore(0)
        self.processes = [FORK.Process(target=self._take_part) for _ in range(count)]
        for process in self.processes:
            process.start()

    def _take_part(self) -> None:
        self.start.wait()
        try:
            with held(self.run_dir):
                for _ in range(max(1, self.count - 1)):  # alone, for ever
                    self.refused.acquire()
        except TakenError:
            self.refused.release()
            os._exit(3)
        os._exit(0)


def pretend(run_dir: Path, claim: Claim) -> None:
    """Leave a claim as somebody else would."""
    (run_dir / owner.FOLDER).mkdir(parents=True, exist_ok=True)
    (run_dir / owner.FOLDER / f"{claim.number}.json").write_text(owner._text(claim))


@pytest.fixture
def beats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "BEAT_S", 0.05)


def slurm_says(monkeypatch: pytest.MonkeyPatch, state: JobState | None, cluster: str = "here") -> None:
    monkeypatch.setattr(slurm, "cluster_name", lambda: cluster)
    monkeypatch.setattr(slurm, "job_states", lambda jobs, **_: {job: state for job in jobs if state})


def test_of_many_that_start_at_once_one_owns_the_directory(tmp_path: Path) -> None:
    for attempt in (1, 2):
        contest = Contest(tmp_path, 12)
        for process in contest.processes:
            process.join()
        assert Counter(process.exitcode for process in contest.processes) == {0: 1, 3: 11}
        claim = last_claim(tmp_path)
        assert claim is not None
        assert (claim.number, claim.until is None) == (attempt, False)


def test_a_killed_owner_locks_nobody_out(tmp_path: Path) -> None:
    (process,) = Contest(tmp_path, 1).processes
    while last_claim(tmp_path) is None:
        time.sleep(0.01)
    with pytest.raises(TakenError, match=f"process {process.pid} on .* is at work on this run"), held(tmp_path):
        pass
    assert process.pid
    os.kill(process.pid, signal.SIGKILL)
    while not owner.is_dead_here(replace(owner.read(tmp_path, 1), pid=process.pid)):
        time.sleep(0.01)  # a zombie until somebody asks, and dead all the same
    assert who_works(tmp_path) is None
    with held(tmp_path) as claim:
        assert claim.number == 2
        assert not is_still_held(tmp_path, 1)
        assert is_still_held(tmp_path, 2)
    process.join()


def test_a_number_that_was_given_out_again_is_another_process(tmp_path: Path) -> None:
    with held(tmp_path) as claim:
        pass
    pretend(tmp_path, replace(claim, number=2, birth="1"))
    assert who_works(tmp_path) is None


@pytest.mark.usefixtures("beats")
@pytest.mark.parametrize("text", ["elsewhere", ""])  # or created, and not yet written
def test_an_owner_on_another_machine_is_gone_when_it_is_silent(tmp_path: Path, text: str) -> None:
    pretend(tmp_path, Claim(1, host="elsewhere", pid=1, machine="another"))
    file = tmp_path / owner.FOLDER / "1.json"
    if not text:
        file.write_text("")
    over = threading.Event()
    alive = threading.Thread(target=owner._beat, args=(file, over))
    alive.start()
    assert who_works(tmp_path) is not None
    over.set()
    alive.join()
    with held(tmp_path) as claim:
        assert claim.number == 2


@pytest.mark.usefixtures("beats")
def test_the_next_attempt_of_a_job_takes_over_and_another_job_asks_slurm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "cluster_name", lambda: pytest.fail("the job itself need not ask"))
    pretend(tmp_path, Claim(1, host="n1", pid=1, machine="another", job=JOB))
    with pytest.raises(TakenError, match="job 7 of cluster here"), held(tmp_path, JOB):
        pass
    with held(tmp_path, replace(JOB, attempt=1)) as claim:
        assert claim.number == 2
    pretend(tmp_path, replace(claim, number=3, until=None))
    for state in (JobState("RUNNING"), JobState("COMPLETING"), JobState("A_NEW_STATE")):
        slurm_says(monkeypatch, state)
        with pytest.raises(TakenError), held(tmp_path, replace(JOB, name="8")):
            pass
    slurm_says(monkeypatch, None, cluster="there")
    with pytest.raises(TakenError), held(tmp_path, replace(JOB, name="8")):
        pass
    slurm_says(monkeypatch, None)
    with held(tmp_path, replace(JOB, name="8")) as claim:
        assert claim.number == 4


def test_a_directory_whose_job_waits_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / rundir.SUBMISSION).write_text('{"slurm_job_id": "7", "cluster": "here"}')
    slurm_says(monkeypatch, JobState("PENDING"))
    with pytest.raises(TakenError, match="that of job 7"), held(tmp_path):
        pass
    slurm_says(monkeypatch, JobState("FAILED"))
    with held(tmp_path):
        pass


@pytest.mark.parametrize(("in_slurm", "grace_s", "saves"), [(True, 0.1, True), (False, 60.0, False)])
def test_slurms_sigterm_has_a_worker_save_before_it_ends(
    tmp_path: Path, in_slurm: bool, grace_s: float, saves: bool
) -> None:
    (tmp_path / "logs").mkdir()
    pretend(tmp_path, Claim(1, host="n1", pid=1))
    code = f"""
import os, pathlib, signal, threading
from imgnet.launch.workers import worker
worker.GRACE_S = {grace_s}
signal.signal(signal.SIGCONT, lambda *_: None)
stop = worker.watch_signals(pathlib.Path({str(tmp_path)!r}), 1, 1, in_slurm={in_slurm})
os.kill(os.getpid(), signal.SIGCONT)
os.kill(os.getpid(), signal.SIGTERM)
stop.wait()
os.write(1, b"saving")
threading.Event().wait()
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout == b"saving") == (128 + signal.SIGTERM, saves), done.stderr
    record = rundir.read_exit_records(tmp_path)[1]
    assert record.error == "ended by SIGTERM"
    assert 'File "<string>", line ' in record.traceback


def test_a_notice_that_comes_too_early_is_kept(tmp_path: Path) -> None:
    pretend(tmp_path, Claim(1, host="n1", pid=1))
    code = f"""
import os, pathlib, signal
from imgnet.runtime import remember_notice
remember_notice()
os.kill(os.getpid(), signal.SIGUSR2)
from imgnet.launch.workers import worker
print(worker.watch_signals(pathlib.Path({str(tmp_path)!r}), 1, 1, in_slurm=True).is_set())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "True\n", done.stderr


def test_a_worker_whose_directory_was_taken_over_ends_without_a_trace(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    code = f"""
import pathlib, threading
from imgnet.launch import owner
from imgnet.launch.workers import worker
worker.BEAT_S = 0.05
run_dir = pathlib.Path({str(tmp_path)!r})
worker.watch_signals(run_dir, 0, 1, in_slurm=False)
print("ready", flush=True)
threading.Event().wait()
"""
    pretend(tmp_path, Claim(1, host="n1", pid=1))
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        pretend(tmp_path, Claim(2, host="n2", pid=1))
        assert process.wait(60) == 128
    assert {file.name for file in tmp_path.iterdir()} == {"logs", owner.FOLDER}
    assert not list((tmp_path / "logs").iterdir())
