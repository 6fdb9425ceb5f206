"""Disturb runs on a real Slurm at random; check each time that what is said is true and that nothing is lost.

    python -m tests.slurm.disturb [--count 100] [--minutes 60] [--seed 1] [--keep FOLDER]

Three runs at a time on four nodes, two of them on one node and one over two: what happens to each, and when, is drawn
from the seed. Every second, Slurm's word of each job is compared with what ``imgnet status`` would say, and the jobs at
work in each directory are counted. Violations are a lie that lasts 10 s, a second job in a directory, a run that does
not come back, an end that says another cause, and one that differs from the undisturbed run in its model or in a row of
its metrics. For root each run has a small disk of its own, which is filled up. About an hour for a hundred; by hand.
Ends with 1 where there was a violation.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.numpy import load_file

from imgnet.data.sources.digits import ensure_digits
from imgnet.launch.follow.observe import FILE_ENDS, observe
from imgnet.rundir import read_json
from imgnet.runtime import RUN_DIR
from tests.commands import ROOT
from tests.distributed.test_resume import TIMES
from tests.slurm.conftest import User
from tests.slurm.private import NODES, SLURMD_TIMEOUT_S, PrivateSlurm, command_of, environment_of

TRUE_WITHIN_S = 10.0
"""How long what is said of a run may lag behind what Slurm says."""
BACK_WITHIN_S = 400.0
"""How long a run may take to train again: Slurm's time to notice, its queue, a busy machine's time to import torch."""
DISK_MB = 160
GPUS = "gpu:A40:2"
EXCLUSIVE = ("+cluster.additional_parameters.exclusive=true",)
SHAPES = {
    "ring on one node": ("topology=ring", "cluster=4xA40", "cluster.gpus_per_node=2"),
    "allreduce on one node": ("topology=allreduce", "cluster=4xA40", "cluster.gpus_per_node=2"),
    "ring over two nodes": ("topology=ring", "cluster=8xA40", "cluster.gpus_per_node=2"),
}
EXPECTED = {
    "PENDING": "queued",
    "RUNNING": "running",
    "SUSPENDED": "running",
    "COMPLETED": "completed",
    "CANCELLED": "cancelled",
    "FAILED": "failed",
    "NODE_FAIL": "failed",
}
"""What is to be said of a run whose job Slurm has in this state, unless the run is completed."""


class LostError(Exception):
    """A run did not come back."""


@dataclass
class Record:
    """What was done, and what came of it; shared by the lanes."""

    seed: int
    count: int
    until: float
    epochs: int
    done: Counter[str] = field(default_factory=Counter)
    compared: int = 0
    violations: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def is_enough(self) -> bool:
        return self.done.total() >= self.count or time.monotonic() > self.until

    def say(self, line: str) -> None:
        with self.lock:
            print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)

    def violated(self, where: str, what: str, run_dir: Path | None = None) -> None:
        """Note a violation with all that is needed to look into it."""
        self.violations.append(f"{where}: {what}")
        self.say(f"VIOLATION in {where} (--seed {self.seed}): {what}")
        if run_dir is not None:
            log = run_dir / "logs" / "slurm.log"
            lines = log.read_text(errors="replace").splitlines()[-25:] if log.is_file() else []
            files = [run_dir / name for name in ("run.json", "submission.json")] + sorted(run_dir.glob("claims/*"))[-2:]
            texts = [f"{file}:\n{file.read_text(errors='replace')}" for file in files if file.is_file()]
            self.say("\n".join([*texts, f"{log}, its last lines:", *lines]))


class Lane:
    """One run after the other, each disturbed until it completes."""

    def __init__(self, name: str, number: int, user: User, record: Record, reference: Path, disk: Path | None) -> None:
        self.name, self.number, self.user, self.record = name, number, user, record
        self.reference, self.disk = reference, disk
        self.random = random.Random(f"{record.seed} {name}")
        self.drawn = 0
        self.last = "nothing", ""
        self.run_dir: Path | None = None
        self.kinds = [kind for kind in KINDS if disk is not None or "disk" not in kind]

    @property
    def slurm(self) -> PrivateSlurm:
        return self.user.slurm

    @property
    def current(self) -> Path:
        assert self.run_dir is not None
        return self.run_dir

    @property
    def where(self) -> str:
        return f"lane {self.number} ({self.name}), disturbance {self.drawn}"

    def job(self) -> str | None:
        return read_json(self.current / "submission.json").get("slurm_job_id")

    def state(self) -> str:
        """Slurm's word for the job; empty where it says nothing."""
        return raw_states(self.slurm).get(self.job() or "", "")

    def status(self) -> str:
        return read_json(self.current / "run.json").get("status", "")

    def num_rows(self) -> int:
        file = self.current / "metrics.csv"
        return max(0, file.read_bytes().count(b"\n") - 1) if file.is_file() else 0

    def go_on(self) -> None:
        """Until enough was done."""
        try:
            while not self.record.is_enough():
                self.run_dir = submit(self.user, SHAPES[self.name], self.record.epochs)
                self.disturb_until_completed()
                self.compare()
                self.run_dir = None
                shutil.rmtree(self.user.folder / "multirun_outputs")
        except LostError as error:
            self.record.violated(self.where, f"lost: {error}", self.run_dir)
        except Exception as error:
            self.record.violated(self.where, f"{type(error).__name__}: {error}", self.run_dir)
            raise

    def disturb_until_completed(self) -> None:
        while self.wait_for_training():
            if self.record.is_enough():
                self.record.say(f"lane {self.number}: no more disturbances, {self.current} goes on to its end")
                while not self.wait(lambda: self.is_completed() or self.is_over(), "it completes"):
                    self.bring_back()
                return
            kind, delay = self.random.choice(self.kinds), self.random.uniform(0, 5)
            self.drawn += 1
            time.sleep(delay)
            if self.is_completed():
                return
            self.disturb(kind, delay)

    def wait_for_training(self) -> bool:
        """Wait for an epoch's end in the present attempt. False where the run has completed instead."""
        rows = self.num_rows()
        while not self.wait(lambda: self.is_over() or self.num_rows() > rows or self.is_completed(), "it trains"):
            self.bring_back()  # the last disturbance took its time
        return not self.is_completed()

    def is_completed(self) -> bool:
        return self.status() == "completed"

    def disturb(self, kind: str, delay: float) -> None:
        start = time.monotonic()
        self.record.say(f"{self.where}: {kind} after {delay:.1f} s, job {self.job()}")
        self.last = kind, KINDS[kind](self)
        resubmitted = self.come_back()
        with self.record.lock:
            self.record.done[kind] += 1
        how = "resubmitted, trains" if resubmitted else "trains"
        self.record.say(f"{self.where}: {' '.join(self.last)}: {how} after {time.monotonic() - start:.0f} s")

    def come_back(self) -> bool:
        """Wait until the run trains, or is over; then type what a user would. Whether that was needed."""
        kind, _ = self.last
        rows, is_open = self.num_rows(), kind in FOR_GOOD
        if is_open or not self.wait(lambda: self.is_over() or self.trains_since(rows), f"{self.last}: it comes back"):
            self.wait(lambda: self.is_over() or self.is_completed(), f"{self.last}: it is over")
        if not self.is_over():
            return False
        self.bring_back()
        rows = self.num_rows()
        self.wait(lambda: self.trains_since(rows), f"{self.last}: resubmitted, it trains")
        return True

    def trains_since(self, rows: int) -> bool:
        is_running = self.state() == "RUNNING" and self.status() == "running" and self.num_rows() != rows
        return self.is_completed() or is_running

    def is_over(self) -> bool:
        """Whether a run ended that is not complete."""
        is_open = self.status() in FILE_ENDS and not self.is_completed()
        return is_open and self.state() in ("FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT")

    def bring_back(self) -> None:
        """Submit again what is over, if it says of its end what was done to it, and ended only where it had to."""
        (kind, detail), run = self.last, read_json(self.current / "run.json")
        said, expected = f"{run.get('status')}: {run.get('error')}", ENDS.get(kind, ())
        if not any(words.format(detail=detail) in said for words in expected):
            what = f"{kind} {detail} ended with {said!r}, expected {expected or 'that it goes on'}"
            self.record.violated(self.where, what, self.current)
        with CONTROLLER:
            before, done = self.job(), self.user.imgnet("resubmit", str(self.current))
        if "submitted job" not in done.stdout or self.job() == before:
            raise LostError(f"resubmit said {done.stdout}{done.stderr}")

    def wait(self, condition: Callable[[], bool], what: str, timeout_s: float = BACK_WITHIN_S) -> bool:
        """Until it is so. False where the run is over by then."""
        end = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > end:
                said = f"job {self.job()} is {self.state()}, run.json says {self.status()}"
                raise LostError(f"not within {timeout_s:.0f} s: {what}; {said}")
            time.sleep(0.3)
        return not self.is_over()

    def compare(self) -> None:
        """The end must be that of the undisturbed run."""
        self.record.compared += 1
        one, other = (load_file(run / "checkpoints" / "final.safetensors") for run in (self.current, self.reference))
        differ = [name for name in one.keys() | other.keys() if not np.array_equal(one[name], other[name])]
        rows = [pd.read_csv(run / "metrics.csv").drop(columns=TIMES) for run in (self.current, self.reference)]
        if differ or not rows[0].equals(rows[1]):
            what = f"the end differs from the undisturbed run: tensors {differ[:3]}, {len(rows[0])} rows"
            self.record.violated(self.where, what, self.current)
        else:
            self.record.say(f"lane {self.number}: {self.current} completed, every bit as undisturbed")


def submit(user: User, shape: tuple[str, ...], epochs: int) -> Path:
    often = ("checkpoint.every_min=0.05", "cluster.max_num_timeout=1000", "skip_completed=false")
    before = set(user.runs())
    done = user.run_py("+experiments=quickstart", f"epochs={epochs}", *shape, *EXCLUSIVE, *often)
    assert done.returncode == 0, done.stderr
    (run_dir,) = set(user.runs()) - before
    return run_dir


def raw_states(slurm: PrivateSlurm) -> dict[str, str]:
    """Slurm's word for each job; nothing while it does not answer."""
    try:
        lines = slurm.ask("squeue", "-h", "-t", "all", "-o", "%i|%T").splitlines()
    except (RuntimeError, subprocess.TimeoutExpired):
        return {}
    return dict(line.split("|") for line in lines)  # type: ignore[misc]


# What is done to a run. Each returns a word on how, for the record.


def kill_worker(lane: Lane) -> str:
    lane.wait(lambda: bool(workers_of(lane.current)) or lane.is_completed(), "there are workers")
    workers = workers_of(lane.current)
    if not workers:
        return "at its end"
    rank = lane.random.choice(sorted(workers))
    kill(workers[rank])
    return f"rank {rank}"


def kill_first_process(lane: Lane) -> str:
    with suppress(ValueError):  # it is just ending
        kill(lane.slurm.first_process(lane.current))
    return ""


def power_cut(lane: Lane) -> str:
    node = lane.random.choice(hosts_of(lane))
    lane.slurm.kill_node(node)
    bring_back(lane, node)
    return node


def slurmd_is_lost(lane: Lane) -> str:
    """The node's jobs live on, and Slurm has given them up."""
    node = lane.random.choice(hosts_of(lane))
    lane.slurm.kill_daemon(node)
    time.sleep(lane.random.uniform(0, 2 * SLURMD_TIMEOUT_S))
    bring_back(lane, node)
    return node


def slurmd_is_restarted(lane: Lane) -> str:
    node = lane.random.choice(hosts_of(lane))
    lane.slurm.kill_daemon(node)
    time.sleep(lane.random.uniform(0, SLURMD_TIMEOUT_S / 2))
    lane.slurm.start_node(node)
    return node


def slurmctld_is_restarted(lane: Lane) -> str:
    with CONTROLLER:
        lane.slurm.restart_controller(lane.random.uniform(0, 8))
        lane.wait(lambda: lane.slurm.takes_jobs(GPUS), "Slurm takes jobs", timeout_s=120)
    return ""


def requeue(lane: Lane) -> str:
    ask(lane, "scontrol", "requeue")
    return ""


def requeue_and_hold(lane: Lane) -> str:
    ask(lane, "scontrol", "requeuehold")
    type_between(lane)
    lane.wait(lambda: lane.state() == "PENDING", "Slurm has queued it again")
    time.sleep(lane.random.uniform(0, 8))
    type_between(lane)
    ask(lane, "scontrol", "release")
    return ""


def preempt(lane: Lane) -> str:
    node = lane.random.choice(hosts_of(lane))
    lane.slurm.ask("sbatch", "-p", "urgent", "-w", node, "--exclusive", "-o", "/dev/null", "--wrap", "sleep 3")
    return node


def suspend_and_resume(lane: Lane) -> str:
    ask(lane, "scontrol", "suspend")
    time.sleep(lane.random.uniform(0, 15))
    ask(lane, "scontrol", "resume")
    return ""


def cancel(lane: Lane) -> str:
    if lane.random.random() < 0.5:
        ask(lane, "scancel")
        return "with scancel"
    done = lane.user.imgnet("cancel", str(lane.current))
    return "with imgnet cancel" if done.returncode == 0 else done.stderr


def cancel_while_it_waits(lane: Lane) -> str:
    ask(lane, "scontrol", "requeuehold")
    lane.wait(lambda: lane.state() == "PENDING", "Slurm has queued it again")
    return cancel(lane)


def usr2_twice(lane: Lane) -> str:
    ask(lane, "scancel", "--signal=USR2")
    time.sleep(lane.random.uniform(0, 3))
    ask(lane, "scancel", "--signal=USR2")
    return ""


def disk_is_full(lane: Lane) -> str:
    with full_disk(lane):
        time.sleep(lane.random.uniform(1, 8))
        type_status(lane)
    return ""


def disk_is_full_and_requeue(lane: Lane) -> str:
    with full_disk(lane):
        ask(lane, "scontrol", "requeue")
        time.sleep(lane.random.uniform(5, 20))
        type_status(lane)
    return ""


def second_job(lane: Lane) -> str:
    """Somebody submits the script once more by hand, or runs it inside another job."""
    script = sorted((lane.current.parent / "slurm").iterdir())[-1]
    if lane.random.random() < 0.5:
        return f"job {lane.slurm.ask('sbatch', '--parsable', str(script)).strip()}"
    env = lane.slurm.environment | {"SLURM_JOB_ID": "424242", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "n1"}
    done = subprocess.run(["bash", str(script)], env=env, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode != 1 or "leaves the run as it is" not in done.stderr:
        lane.record.violated(lane.where, f"by hand: {done.returncode}, {done.stdout}{done.stderr}", lane.current)
    return "in job 424242"


def typed(lane: Lane) -> str:
    """Commands that must change nothing."""
    type_between(lane)
    shape = SHAPES[lane.name]
    again = lane.user.run_py("+experiments=quickstart", f"epochs={lane.record.epochs}", *shape, *EXCLUSIVE)
    if "skipped" not in again.stdout:
        lane.record.violated(lane.where, f"typed again: {again.stdout}{again.stderr}", lane.current)
    return ""


KINDS: dict[str, Callable[[Lane], str]] = {
    function.__name__.replace("_", " "): function
    for function in (
        kill_worker,
        kill_first_process,
        power_cut,
        slurmd_is_lost,
        slurmd_is_restarted,
        slurmctld_is_restarted,
        requeue,
        requeue_and_hold,
        preempt,
        suspend_and_resume,
        cancel,
        cancel_while_it_waits,
        usr2_twice,
        disk_is_full,
        disk_is_full_and_requeue,
        second_job,
        typed,
    )
}
ENDS = {
    "kill worker": ("failed: {detail} failed: killed",),
    "kill first process": ("failed: the job's first process",),
    "cancel": ("cancelled: ",),
    "cancel while it waits": ("cancelled: ",),
    "disk is full": ("No space left",),
    "disk is full and requeue": ("No space left", "before the run began", "first process"),
}
"""What may end a run, and what the run then says. All else it gets over by itself."""
FOR_GOOD = ("kill worker", "kill first process", "cancel", "cancel while it waits")
"""What always does."""
CONTROLLER = threading.Lock()
"""Held while it is restarted, until it knows its nodes again: till then it refuses every job, and is right to."""


def ask(lane: Lane, *command: str) -> None:
    """Tell Slurm something about the lane's job; it may have ended this moment, or Slurm may be away."""
    for _ in range(20):
        try:
            lane.slurm.ask(*command, lane.job() or "")
            return
        except subprocess.TimeoutExpired:
            continue
        except RuntimeError as error:
            if "ontact" not in str(error) and "onnect" not in str(error):
                lane.record.say(f"{lane.where}: {' '.join(str(error).split())}")
                return
            time.sleep(1)


def type_between(lane: Lane) -> None:
    """What a user may type at any time: nothing comes of it."""
    before = lane.job()
    type_status(lane)
    done = lane.user.imgnet("resubmit", str(lane.current))
    answers = ("nothing to submit", "did not answer")
    if not any(answer in done.stdout + done.stderr for answer in answers) or lane.job() != before:
        lane.record.violated(lane.where, f"resubmit said {done.stdout}{done.stderr}", lane.current)


def type_status(lane: Lane) -> None:
    done = lane.user.imgnet("status")
    if done.returncode or "Traceback" in done.stderr:
        lane.record.violated(lane.where, f"status ended with {done.returncode}: {done.stderr}", lane.current)


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def workers_of(run_dir: Path) -> dict[int, int]:
    """Processes that write the logs of a run's workers, by rank."""
    found = {}
    for links in Path("/proc").glob("[0-9]*/fd"):
        with suppress(OSError):
            files = {link.resolve() for link in links.iterdir()}
            for file in files:
                if file.parent == run_dir / "logs" and file.suffix == ".log" and file.stem.startswith("rank_"):
                    found[int(file.stem.removeprefix("rank_"))] = int(links.parent.name)
    return found


def hosts_of(lane: Lane) -> list[str]:
    """Nodes of the run's job, whose slurmd is there."""
    hosts = read_json(lane.current / "run.json").get("hosts") or [NODES[0]]
    return [host for host in hosts if host in lane.slurm.daemons] or [next(n for n in NODES if n in lane.slurm.daemons)]


def bring_back(lane: Lane, node: str) -> None:
    """Start a node's slurmd when Slurm has given the node up."""

    def is_down() -> bool:
        with suppress(RuntimeError):
            return lane.slurm.ask("sinfo", "-h", "-n", node, "-o", "%T").startswith("down")
        return False

    try:
        lane.wait(is_down, f"{node} is down", timeout_s=120)
    finally:
        lane.slurm.start_node(node)


@contextmanager
def full_disk(lane: Lane) -> Iterator[None]:
    assert lane.disk is not None
    filler = lane.disk / "filler"
    descriptor = os.open(filler, os.O_WRONLY | os.O_CREAT)
    for size in (2**20, 2**12, 1):
        with suppress(OSError):
            while True:
                os.write(descriptor, bytes(size))
    os.close(descriptor)
    try:
        yield
    finally:
        filler.unlink()


class Watch(threading.Thread):
    """Compares all the time what is said of each run with what Slurm says, and counts the jobs in each directory."""

    def __init__(self, lanes: list[Lane], record: Record) -> None:
        super().__init__(name="watch", daemon=True)
        self.lanes, self.record = lanes, record
        self.over = threading.Event()
        self.since: dict[tuple[int, str], float] = {}
        self.looks = 0

    def run(self) -> None:
        while not self.over.wait(1.0):
            jobs = jobs_at_work(self.lanes[0].slurm)
            for lane in self.lanes:
                run_dir = lane.run_dir
                if run_dir is None:
                    continue
                try:
                    self._look(lane, run_dir, jobs.get(str(run_dir), set()))
                except Exception as error:  # it must go on watching
                    if lane.run_dir == run_dir:
                        self.record.violated(lane.where, f"looking raised {type(error).__name__}: {error}", run_dir)

    def _look(self, lane: Lane, run_dir: Path, jobs: set[tuple[str, str]]) -> None:
        before, job = raw_states(lane.slurm), lane.job()
        (one,) = observe([run_dir])
        after = raw_states(lane.slurm)
        self.looks += 1
        state = before.get(job or "")
        if state is not None and state == after.get(job or "") and job == lane.job():
            expected = EXPECTED.get(state, one.status)
            lie = f"Slurm says {state}, and status {one.status} ({one.state})"
            is_true = one.status == expected or (one.status == "completed" == one.run.get("status"))
            self._note(lane, run_dir, "status", None if is_true else lie, TRUE_WITHIN_S)
        several = f"jobs {sorted(jobs)} work in {run_dir}" if len(jobs) > 1 else None
        self._note(lane, run_dir, "owner", several, TRUE_WITHIN_S)

    def _note(self, lane: Lane, run_dir: Path, kind: str, wrong: str | None, patience_s: float) -> None:
        key = lane.number, kind
        if wrong is None:
            self.since.pop(key, None)
            return
        since = self.since.setdefault(key, time.monotonic())
        if since != float("inf") and time.monotonic() - since > patience_s:
            self.record.violated(lane.where, f"{wrong}, for {patience_s:.0f} s", run_dir)
            self.since[key] = float("inf")  # said once


def jobs_at_work(slurm: PrivateSlurm) -> dict[str, set[tuple[str, str]]]:
    """The jobs, each by number and attempt, that have tasks at work, by the directory."""
    found: dict[str, set[tuple[str, str]]] = {}
    for pid in slurm.processes():
        values = dict(pair.decode().split("=", 1) for pair in environment_of(pid) if b"=" in pair)
        if RUN_DIR in values and "SLURM_PROCID" in values and b"srun" not in command_of(pid)[:1]:
            attempt = values.get("SLURM_JOB_ID", ""), values.get("SLURM_RESTART_COUNT", "0")
            found.setdefault(values[RUN_DIR], set()).add(attempt)
    return found


class Nurse(threading.Thread):
    """Does what an administrator would: takes nodes back that Slurm drained because a process did not die in time, and
    releases jobs that it holds because a slurmd died just when it was to launch them."""

    def __init__(self, slurm: PrivateSlurm) -> None:
        super().__init__(name="nurse", daemon=True)
        self.slurm = slurm
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(5.0):
            with suppress(RuntimeError, subprocess.TimeoutExpired):
                for line in self.slurm.ask("sinfo", "-h", "-N", "-p", "gpu", "-o", "%n %T").splitlines():
                    node, state = line.split()
                    if state.startswith("drained"):
                        self.slurm.ask("scontrol", "update", f"node={node}", "state=resume")
                for line in self.slurm.ask("squeue", "-h", "-t", "PENDING", "-o", "%i|%r").splitlines():
                    job, reason = line.split("|")
                    if reason == "launch failed requeued held":
                        self.slurm.ask("scontrol", "release", job)


@contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """A new folder, a file system of its own where that can be had."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, check=False)
    try:
        yield folder if done.returncode == 0 else None
    finally:
        if done.returncode == 0:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)


def make_references(slurm: PrivateSlurm, folder: Path, data: Path, epochs: int) -> dict[str, Path]:
    """The undisturbed runs."""
    user = make_user(slurm, folder, data)
    runs = {name: submit(user, shape, epochs) for name, shape in SHAPES.items()}
    end = time.monotonic() + 900
    while any(read_json(run / "run.json")["status"] != "completed" for run in runs.values()):
        assert time.monotonic() < end, [(run / "logs/slurm.log").read_text() for run in runs.values()]
        time.sleep(1)
    return runs


def make_user(slurm: PrivateSlurm, folder: Path, data: Path) -> User:
    folder.mkdir(exist_ok=True)
    (folder / "data").mkdir()
    (folder / "data" / "digits").symlink_to(data)
    return User(slurm, folder, ROOT)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--kinds", help="only these, as they are printed, separated by commas")
    parser.add_argument("--keep", type=Path, help="where directories of runs go that had a violation")
    options = parser.parse_args(arguments)
    if options.kinds:
        chosen = options.kinds.split(",")
        for kind in [kind for kind in KINDS if kind not in chosen]:
            del KINDS[kind]
    with tempfile.TemporaryDirectory() as name, PrivateSlurm() as slurm:
        os.environ["SLURM_CONF"] = slurm.environment["SLURM_CONF"]
        return disturb(slurm, Path(name), options)


def disturb(slurm: PrivateSlurm, folder: Path, options: Any) -> int:
    ensure_digits(folder / "digits")
    references = make_references(slurm, folder / "calm", folder / "digits", options.epochs)
    print(f"{len(references)} undisturbed runs of {options.epochs} epochs are made; load {os.getloadavg()[0]:.0f}")
    record = Record(options.seed, options.count, time.monotonic() + 60 * options.minutes, options.epochs)
    start, nurse = time.monotonic(), Nurse(slurm)
    nurse.start()
    with small_disk(folder / "0") as one, small_disk(folder / "1") as two, small_disk(folder / "2") as three:
        lanes = [
            Lane(
                name, number, make_user(slurm, folder / str(number), folder / "digits"), record, references[name], disk
            )
            for number, (name, disk) in enumerate(zip(SHAPES, (one, two, three), strict=True))
        ]
        watch = Watch(lanes, record)
        watch.start()
        threads = [threading.Thread(target=lane.go_on, name=lane.name) for lane in lanes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for helper in (watch, nurse):
            helper.over.set()
            helper.join()
        if record.violations and options.keep:
            for lane in lanes:
                shutil.copytree(lane.user.folder, options.keep / str(lane.number), symlinks=True, dirs_exist_ok=True)
    return conclude(record, watch, time.monotonic() - start)


def conclude(record: Record, watch: Watch, seconds: float) -> int:
    print(f"{record.done.total()} disturbances in {seconds / 60:.0f} min, seed {record.seed}, {watch.looks} looks:")
    print("  " + ", ".join(f"{count} x {kind}" for kind, count in sorted(record.done.items())))
    print(f"{record.compared} runs came to their end and were compared with the undisturbed ones")
    for violation in record.violations:
        print(f"violation: {violation}")
    print(f"{len(record.violations)} violations")
    return 1 if record.violations else 0


if __name__ == "__main__":
    sys.exit(main())
