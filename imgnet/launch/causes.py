"""Why a run ended before its last step: one cause, the first, from the last words of its workers and of Slurm."""

import re
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from imgnet import rundir
from imgnet.config import SlurmConfig, read
from imgnet.launch.slurm.commands import JobState
from imgnet.rundir import ExitRecord, read_exit_records, write_exit_record

SEEN_LATE_S = 2.0
"""How much later than its peers' errors the death of a worker may be seen."""
READ_BYTES = 2**18
"""So much of the end of a job's output is searched for words of Slurm's."""
NOISE = ("srun:", "slurmstepd")
"""First words of lines in the job's output that name no cause."""
_LOST_NODE = re.compile(r"^srun: error: Node failure on (\S+)", re.MULTILINE)
_ENDED_TASKS = re.compile(r"^srun: error: \S+: tasks? ([\d,-]+): (.+?)(?: \(core dumped\))?$", re.MULTILINE)
_EXIT_CODE = re.compile(r"Exited with exit code (\d+)")
_SIGNALS = {signal.strsignal(number): -number for number in signal.valid_signals()} | {"Out Of Memory": -signal.SIGKILL}
"""Slurm's words for the signal that ended a task."""
_ENDED_JOB = re.compile(r"\*\*\* JOB \S+ ON \S+ CANCELLED AT \S+(?: DUE TO ([A-Z ]+))?")
_FOLLOWS = re.compile(r"connection|peer|broken pipe|NCCL|DistNetworkError|DistStoreError|timed out", re.IGNORECASE)
"""In the error of a worker that lost touch with another one."""
_LATE = re.compile(r"rank (\d+) on")
"""In the word of a worker that has waited for others."""
SOMEBODY = "SOMEBODY"
"""Stands for the reason where Slurm gives none."""
_OTHER_ENDS = {
    "TIMEOUT": "the time limit was reached (cluster.timeout_min={timeout_min})",
    "DEADLINE": "the job's deadline was reached",
    "OUT_OF_MEMORY": "a node had not enough memory (cluster.mem_gb)",
    "PREEMPTED": "the job was preempted",
    "BOOT_FAIL": "a node did not start",
}


class RunFailed(RuntimeError):  # noqa: N818  (it names what happened)
    """A run whose workers did not all end well. The text is for the user; ``summary`` is one line of it."""

    def __init__(self, summary: str, details: str = "") -> None:
        super().__init__(f"{summary}\n{details}".rstrip())
        self.summary = summary


@dataclass(frozen=True)
class Ending:
    """How a run ended that did not come to its last step."""

    status: str
    failure: RunFailed


def note_deaths(run_dir: Path, exit_codes: Mapping[int, int]) -> None:
    """Speak for workers that left no word, by what their launcher saw: exit codes by rank, negative for a signal."""
    for rank, code in exit_codes.items():
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        write_exit_record(run_dir, ExitRecord(rank, "killed", time.time(), how))


def deaths_told_by_srun(run_dir: Path, log_from: int) -> dict[int, int]:
    """How tasks ended, by rank in the order of their ends, as :func:`note_deaths` takes it.

    SIGTERM is none of theirs: ``srun`` sends it to all others when one has failed.
    """
    found: dict[int, int] = {}
    for ranks, words in _ENDED_TASKS.findall(_said(run_dir, log_from)):
        exited = _EXIT_CODE.match(words)
        code = int(exited[1]) if exited else _SIGNALS.get(words)
        if code is not None and code != -signal.SIGTERM:
            found |= dict.fromkeys(_numbers(ranks), code)
    return found


def _numbers(ranges: str) -> Iterator[int]:
    """0, 1, 2, 5 for ``0-2,5``."""
    for span in ranges.split(","):
        first, _, last = span.partition("-")
        yield from range(int(first), int(last or first) + 1)


def root_cause(run_dir: Path, world_size: int) -> RunFailed:
    """Which worker failed first, and why. One only: the others lost touch with it, and failed for that.

    A worker that dies takes its peers' collectives with it, so that several fail within milliseconds. One that was seen
    to die, or left no record at all, was killed before it could speak; it comes before those that lost a connection.
    """
    records = read_exit_records(run_dir)
    logs = f"logs: {run_dir / 'logs'}"
    raised = [record for record in records.values() if record.how == "raised"]
    waited = [record for record in records.values() if record.how == "waited"]
    if waited:  # for one that has left no word, or that ended when those did which waited
        first = min(waited, key=lambda record: record.time)
        return RunFailed(first.error, f"{first.traceback or _stacks_of(first.error, records)}{logs}")
    first = _first([record for record in records.values() if record.how == "killed"], raised)
    if first is not None and first.how == "raised":
        return RunFailed(f"rank {first.rank} failed: {first.error}", f"{first.traceback}{logs}")
    if first is not None:
        return RunFailed(_without_a_word(first.rank, first.error), logs)
    silent = [rank for rank in range(world_size) if rank not in records]
    if silent and (raised or len(silent) < world_size):
        return RunFailed(_without_a_word(silent[0], "killed"), logs)
    if raised:
        first = min(raised, key=lambda record: record.time)
        return RunFailed(f"rank {first.rank} failed: {first.error}", f"{first.traceback}{logs}")
    return RunFailed(_ended_by_signal(records), logs)


def _stacks_of(error: str, records: Mapping[int, ExitRecord]) -> str:
    """Where the workers that did not come were when they were ended, as far as they could still say it."""
    late = sorted({int(rank) for rank in _LATE.findall(error)} & records.keys())
    stacks = {rank: records[rank].traceback for rank in late if records[rank].how != "waited"}
    return "".join(f"rank {rank} was in\n{stack.rstrip()}\n" for rank, stack in stacks.items() if stack)


def cause_known_to(run_dir: Path, error: BaseException, world_size: int) -> RunFailed:
    """The same as far as one worker can tell, that has left its own word and whose peers are about to leave theirs."""
    end = time.monotonic() + SEEN_LATE_S
    lost_touch = _FOLLOWS.search(str(error))
    while lost_touch and len(read_exit_records(run_dir)) < world_size - 1 and time.monotonic() < end:
        time.sleep(0.1)
    return root_cause(run_dir, world_size)


def _first(killed: Sequence[ExitRecord], raised: Sequence[ExitRecord]) -> ExitRecord | None:
    """The first that failed by itself, if it is known: killed, or with an error that no other worker brought about."""
    times = {record.rank: record.time - SEEN_LATE_S for record in killed}
    own = [record for record in raised if not _FOLLOWS.search(record.error)]
    return min([*killed, *own], key=lambda record: times.get(record.rank, record.time), default=None)


def _without_a_word(rank: int, how: str) -> str:
    return f"rank {rank} failed: {how} without a traceback (by a user, or by the system for want of memory?)"


def _ended_by_signal(records: dict[int, ExitRecord]) -> str:
    ended = [record for record in records.values() if record.how == "terminated"]
    if not ended:
        return "workers ended before they wrote a line"
    first = min(ended, key=lambda record: record.time)
    return f"rank {first.rank} failed: {first.error}"


def was_requeued(run_dir: Path, state: JobState | None, *, attempt: int, log_from: int) -> bool:
    """Whether Slurm ends this attempt of a job only to begin another."""
    if state is not None and state.restarts > attempt:
        return True
    return "JOB REQUEUE" in _words_of_its_end(_said(run_dir, log_from))


def slurms_ending(run_dir: Path, state: JobState | None, *, log_from: int = 0) -> Ending | None:
    """How Slurm ended a job, or none where it did not.

    Args:
        run_dir: of the run.
        state: what Slurm says of the job, during its last seconds or later; None: nothing.
        log_from: where the output of the job's present attempt begins.
    """
    run, said = rundir.read_json(run_dir / "run.json"), _said(run_dir, log_from)
    logs = f"logs: {run_dir / 'logs'}"
    known = state or JobState("")
    words, lost = _words_of_its_end(said), _LOST_NODE.search(said)
    if lost or known.state == "NODE_FAIL" or known.reason == "NodeDown" or "NODE FAILURE" in words:
        return Ending("failed", RunFailed(f"Slurm lost {f'node {lost[1]}' if lost else 'a node'}", logs))
    saved = "preempted" if run.get("status") == "preempted" else "failed"
    if known.reason == "TimeLimit" or "TIME LIMIT" in words:
        known = JobState("TIMEOUT")
    if "PREEMPTION" in words:
        known = JobState("PREEMPTED")
    if known.state in _OTHER_ENDS:
        return Ending(saved, RunFailed(_OTHER_ENDS[known.state].format(timeout_min=_timeout_min(run_dir)), logs))
    if why := rundir.read_json(run_dir / rundir.SUBMISSION).get("cancelled"):
        return Ending("cancelled", RunFailed(why, logs))
    is_ending = known.state == "COMPLETING" and not known.reason  # all other ends have one by now
    if SOMEBODY in words or known.state == "CANCELLED" or is_ending:
        return Ending("cancelled", RunFailed("the job was cancelled", logs))
    return None


def _timeout_min(run_dir: Path) -> int | None:
    file = run_dir / ".hydra" / "config.yaml"
    cluster = read(file).cluster if file.is_file() else None
    return cluster.timeout_min if isinstance(cluster, SlurmConfig) else None


def _words_of_its_end(said: str) -> list[str]:
    """Why Slurm ended the job, in its own words."""
    return [(found[1] or SOMEBODY).partition(",")[0].strip() for found in _ENDED_JOB.finditer(said)]


def first_process_killed(run_dir: Path) -> str:
    """Said of a job whose first process is gone without a word."""
    hosts = rundir.read_json(run_dir / "run.json").get("hosts") or ["its first node"]
    return f"the job's first process (imgnet.launch.slurm.job) was killed on {hosts[0]}"


def last_words(run_dir: Path, log_from: int = 0) -> str:
    """The last line of a job's output that may name a cause; empty where there is none."""
    lines = _said(run_dir, log_from).splitlines()
    return next((line for line in reversed(lines) if line.strip() and not line.startswith(NOISE)), "")


def _said(run_dir: Path, log_from: int) -> str:
    """The end of what a job printed."""
    log = run_dir / "logs" / "slurm.log"
    if not log.is_file():
        return ""
    with log.open("rb") as file:
        file.seek(max(log_from, log.stat().st_size - READ_BYTES))
        return file.read().decode("utf-8", errors="replace")
