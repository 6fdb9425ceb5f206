"""One owner of a run directory at a time, on whatever machine and however it was started.

``claims/1.json``, ``claims/2.json``, ...: a file for each command or job that worked here, the last of which owns the
directory until it says that it is done, or is known to be gone. Whoever comes next creates the next number, which a
file system gives to one process only, also over NFS; no file is ever removed, so that no number is given twice.
An owner that lost its claim while nobody could reach it ends when it sees a higher number.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from imgnet import rundir
from imgnet.config import ConfigError
from imgnet.launch.slurm import commands as slurm
from imgnet.runtime import SlurmJob

FOLDER = "claims"
BEAT_S = 5.0
"""Between two signs of life of an owner, and between two looks of its workers whether it still is the owner."""
SILENT_BEATS = 4
"""So many signs of life missed, and an owner on a machine that cannot be looked into is gone."""


class TakenError(ConfigError):
    """Somebody else works in the directory, or may."""


@dataclass(frozen=True)
class Claim:
    """Who works, or worked, in a run directory."""

    number: int
    host: str
    pid: int
    machine: str | None = None
    """One boot of one machine, and the container on it; None where the system does not tell."""
    birth: str | None = None
    """When the process began, in the machine's own count: numbers of processes are given out again."""
    job: SlurmJob | None = None
    """The job whose first process this is; None for a command, wherever it was typed."""
    log_bytes: int = 0
    """Length of the job's output when this claim was made."""
    since: str = field(default_factory=rundir.now)
    until: str | None = None
    """When it was given back; None while it is held, and for ever where its process was killed."""

    def __str__(self) -> str:
        if self.job is not None:
            return f"job {self.job}"
        return f"process {self.pid} on {self.host}" if self.host else "a process that has only just begun"


@contextmanager
def held(run_dir: Path, job: SlurmJob | None = None) -> Iterator[Claim]:
    """Own a run directory; made if it is not there. The claim is given back at the end, and void if that never comes.

    Args:
        run_dir: the directory.
        job: whose first process this is.

    Raises:
        TakenError: somebody else works in it, or a job of Slurm is to.
    """
    claim = _take(run_dir, job)
    done = threading.Event()
    beating = threading.Thread(target=_beat, args=(_file(run_dir, claim.number), done), name="claim", daemon=True)
    beating.start()
    try:
        yield claim
    finally:
        done.set()
        beating.join()
        with suppress(OSError):  # a full disk; that the process is gone is seen without
            _give_back(run_dir, claim)


def is_still_held(run_dir: Path, number: int) -> bool:
    """Whether nobody has taken over from the owner with this number, as far as can be seen."""
    try:
        return not _file(run_dir, number + 1).exists()
    except OSError:
        return True


def last_claim(run_dir: Path) -> Claim | None:
    """The newest claim to a run directory; None where there never was one."""
    numbers = [int(file.stem) for file in (run_dir / FOLDER).glob("*.json") if file.stem.isdecimal()]
    return read(run_dir, max(numbers)) if numbers else None


def read(run_dir: Path, number: int) -> Claim:
    """A claim; one without a name where its owner has created the file and not yet written it."""
    file = _file(run_dir, number)
    try:
        values = rundir.read_json(file)
        job = values.pop("job", None)
        return Claim(job=SlurmJob(**job) if job else None, **values)
    except (json.JSONDecodeError, TypeError):
        return Claim(number, host="", pid=0)


def is_dead_here(claim: Claim) -> bool:
    """Whether the owner was a process of this machine that has ended."""
    return claim.machine is not None and claim.machine == _machine() and _birth(claim.pid) != claim.birth


def who_works(run_dir: Path) -> Claim | None:
    """The present owner of a run directory. May take some seconds, where it is on another machine."""
    claim = last_claim(run_dir)
    return None if claim is None or _is_gone(run_dir, claim, None) else claim


def _take(run_dir: Path, job: SlurmJob | None) -> Claim:
    (run_dir / FOLDER).mkdir(parents=True, exist_ok=True)
    if job is None:
        _leave_it_to_its_job(run_dir)
    while True:
        last = last_claim(run_dir)
        if last is not None and not _is_gone(run_dir, last, job):
            raise TakenError([f"{run_dir}: {last} is at work on this run"])
        claim = _claim(run_dir, (last.number if last else 0) + 1, job)
        if _create(_file(run_dir, claim.number), claim):
            if last is not None and last.until is None and last.job is not None:
                time.sleep(2 * BEAT_S)  # its workers may live on where Slurm does not reach them, and notice by then
            return claim


def _leave_it_to_its_job(run_dir: Path) -> None:
    """Refuse a directory whose job waits or runs."""
    submission = rundir.read_json(run_dir / rundir.SUBMISSION)
    name = submission.get("slurm_job_id")
    if name and not _is_over(SlurmJob(name, submission.get("cluster", "")), run_dir):
        raise TakenError([f"{run_dir}: this run is that of job {name}; `imgnet cancel` ends it"])


def _is_gone(run_dir: Path, claim: Claim, job: SlurmJob | None) -> bool:
    if claim.until is not None:
        return True
    if claim.job is not None:
        if job is not None and (job.name, job.cluster) == (claim.job.name, claim.job.cluster):
            return job.attempt > claim.job.attempt
        return _is_over(claim.job, run_dir)
    if claim.machine is not None and claim.machine == _machine():
        return is_dead_here(claim)
    return _is_silent(_file(run_dir, claim.number))


def _is_over(job: SlurmJob, run_dir: Path) -> bool:
    """Whether Slurm says so; what nobody can tell counts as no."""
    try:
        if job.cluster not in ("", slurm.cluster_name()):
            return False
        state = slurm.job_states([job.name], users=[run_dir.stat().st_uid]).get(job.name)
    except slurm.NoAnswerError:
        return False
    return state is None or state.is_over


def _is_silent(file: Path) -> bool:
    """Watch for a sign of life. By change alone: the clocks of two machines differ."""
    first = _touched(file)
    for _ in range(SILENT_BEATS):
        time.sleep(BEAT_S)
        if _touched(file) != first:
            return False
    return True


def _touched(file: Path) -> int:
    with file.open("rb") as opened:  # opening makes NFS ask its server
        return os.fstat(opened.fileno()).st_mtime_ns


def _beat(file: Path, done: threading.Event) -> None:
    while not done.wait(BEAT_S):
        with suppress(OSError):  # the server may be away, or the directory removed
            os.utime(file)


def _claim(run_dir: Path, number: int, job: SlurmJob | None) -> Claim:
    log = run_dir / "logs" / "slurm.log"
    return Claim(
        number=number,
        host=socket.gethostname(),
        pid=os.getpid(),
        machine=_machine(),
        birth=_birth(os.getpid()),
        job=job,
        log_bytes=log.stat().st_size if log.is_file() else 0,
    )


def _file(run_dir: Path, number: int) -> Path:
    return run_dir / FOLDER / f"{number}.json"


def _create(file: Path, claim: Claim) -> bool:
    """Write a claim; False where somebody else was faster. On a full disk it stays empty, and counts all the same."""
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return False
    with suppress(OSError), os.fdopen(descriptor, "w", encoding="utf-8") as opened:
        opened.write(_text(claim))
    return True


def _give_back(run_dir: Path, claim: Claim) -> None:
    if is_still_held(run_dir, claim.number):
        rundir.write_atomically(_file(run_dir, claim.number), _text(replace(claim, until=rundir.now())))


def _text(claim: Claim) -> str:
    return json.dumps(asdict(claim), indent=2) + "\n"


def _machine() -> str | None:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"  # where a number means the same process
    except OSError:
        return None


def _birth(pid: int) -> str | None:
    """The clock tick in which a process began; None where there is no such process, or no way to know."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if words[0] == "Z" else words[19]  # a zombie has ended, and only its parent has not asked yet
