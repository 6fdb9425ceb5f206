"""What is asked of Slurm, and what it answers: a thin layer over its commands, which alone every cluster has."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import cache
from io import StringIO
from itertools import accumulate

from submitit.core.utils import FailedJobError, FailedSubmissionError

from imgnet.config import ConfigError, SlurmConfig
from imgnet.config.ranges import shown
from imgnet.launch.slurm.batch import gpus
from imgnet.launch.slurm.executor import PATIENCE_S
from imgnet.runtime import environment_for_sbatch

NO_SBATCH = "there is no sbatch on the path; type the command on a machine of the cluster, or use cluster=local"
OVER = (
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "TIMEOUT",
)
"""States of jobs that are over. A state that is not known here counts as alive, so that nothing is started twice."""
WAITING = ("PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT")
"""States of jobs that are to begin, for the first time or once more."""
QUEUE_FIELDS = {"ArrayJobID": 20, "ArrayTaskID": 20, "State": 20, "RestartCnt": 10, "Reason": 100}
"""What squeue is asked for, and the width of each column."""
NO_ANSWER = 124
"""Exit status that stands for a controller that hangs or is away; ``timeout`` has it too."""
_WORDS_OF_SILENCE = ("timed out", "unable to contact slurm controller", "connection refused", "connect failure")
_HINTS = (
    ("partition", "cluster.partition"),
    ("account", "cluster.account"),
    ("feature", "cluster.constraint"),
    ("node configuration", "cluster.nodes, cluster.gpus_per_node, cluster.cpus_per_task, cluster.mem_gb"),
    ("time limit", "cluster.timeout_min"),
)


@dataclass(frozen=True)
class JobState:
    """What Slurm says of one job."""

    state: str
    """``PENDING``, ``RUNNING``, ``COMPLETED``, ``FAILED``, ``CANCELLED``, ``TIMEOUT``, ``NODE_FAIL``, ..."""
    reason: str = ""
    """Why a job waits or failed, in Slurm's words."""
    restarts: int = 0
    """How often Slurm has queued it again."""

    @property
    def is_over(self) -> bool:
        """Whether nothing of the job will run any more, unless somebody queues it again by hand."""
        return self.state in OVER

    @property
    def is_waiting(self) -> bool:
        """Whether the job is to begin."""
        return self.state in WAITING


class NoAnswerError(RuntimeError):
    """Slurm is not here, or does not answer; the text holds its words."""


def is_here() -> bool:
    """Whether jobs can be submitted from this machine."""
    return shutil.which("sbatch") is not None


def refusal(script: str, cluster: SlurmConfig) -> list[str]:
    """Why Slurm would not take a job, in one line, in its own words; nothing where it would. Queues nothing."""
    done = _run(["sbatch", "--test-only"], stdin=script)
    if done.returncode == 0:
        return []
    if done.returncode == NO_ANSWER:
        return [f"cluster={cluster.name}: {done.stderr}"]
    words = "; ".join(
        line.removeprefix("sbatch: ").removeprefix("error: ").removeprefix("allocation failure: ")
        for line in done.stderr.splitlines()
        if line.strip()
    )
    keys = next((keys for word, keys in _HINTS if word in words.lower()), "")
    more = _what_nodes_have(cluster) if "node configuration" in words else ""
    return [f"cluster={cluster.name}: Slurm refuses the job: {words}{more}{f' (see {keys})' if keys else ''}"]


def _what_nodes_have(cluster: SlurmConfig) -> str:
    """The nodes of the partition, as a remedy for a job that asks for more than they have."""
    where = ["-p", cluster.partition] if cluster.partition else []
    done = _run(["sinfo", "-h", "-e", "-o", "%D nodes with %G, %c cores, %m MiB", *where])
    offered = sorted({line.strip() for line in done.stdout.splitlines()})
    asked = f"{cluster.nodes} nodes with {gpus(cluster)}"
    return f"; asked for {asked}; it has {' and '.join(offered)}" if offered else ""


def refusal_of_srun(cluster: SlurmConfig) -> list[str]:
    """Why srun would not take the further arguments, in its own words; nothing where it would. Starts nothing."""
    if not cluster.srun_args:
        return []
    done = _run(["srun", *cluster.srun_args, "--version"])  # it reads those before
    if done.returncode == 0:
        return []
    words = "; ".join(line.removeprefix("srun: ").removeprefix("error: ") for line in done.stderr.splitlines())
    return [f"cluster={cluster.name}: srun refuses cluster.srun_args={shown([*cluster.srun_args])}: {words}"]


@contextmanager
def one_line_refusals() -> Iterator[None]:
    """Around a submission by submitit: what fails is told in one line.

    Raises:
        ConfigError: Slurm did not take the job, or did not say so.
    """
    start = time.monotonic()
    try:
        with redirect_stderr(StringIO()):  # submitit prints what sbatch says, and raises it as well
            yield
    except FailedSubmissionError as error:
        raise ConfigError([f"{str(error).splitlines()[0]}; see `squeue --me`"]) from None
    except FailedJobError as error:
        call = error.__cause__
        assert isinstance(call, subprocess.CalledProcessError)
        raise ConfigError([_not_taken(call, " ".join(str(error).split()), time.monotonic() - start)]) from None


def _not_taken(call: subprocess.CalledProcessError, words: str, seconds: float) -> str:
    script = call.cmd[-1]
    if call.returncode == NO_ANSWER or _is_silence(words):
        silence = _unanswered(["sbatch"], seconds, f" ({words})" if words else "").stderr
        return f"{silence}; whether it took {script} is not known: see `squeue --me`"
    return f"sbatch refused {script}: {words}"


def cancel(job_ids: Sequence[str]) -> None:
    """End jobs, whether they wait or run.

    Raises:
        ConfigError: Slurm did not do it.
    """
    done = _run(["scancel", *job_ids])
    if done.returncode != 0:
        raise ConfigError([" ".join(done.stderr.split())])


def requeue(job_id: str) -> str:
    """Have a job queued again, which ends it; why that was not done, or nothing."""
    done = _run(["scontrol", "requeue", job_id])
    return " ".join(done.stderr.split()) or f"scontrol ended with {done.returncode}" if done.returncode else ""


@cache
def cluster_name() -> str:
    """What the cluster calls itself whose commands are on the path.

    Raises:
        NoAnswerError: it does not say.
    """
    done = _run(["scontrol", "show", "config"])
    name = re.search(r"^ClusterName\s*=\s*(\S+)", done.stdout, re.MULTILINE)
    if done.returncode != 0 or name is None:
        raise NoAnswerError(" ".join(done.stderr.split()))
    return name[1]


def job_states(
    job_ids: Iterable[str], *, ended: Iterable[str] = (), users: Iterable[int] | None = None
) -> dict[str, JobState]:
    """What Slurm knows of these jobs (``12``, or ``12_3`` in an array); those it has forgotten are left out.

    The queue is asked first. It forgets a job minutes after its end; then accounting is asked, where there is any.

    Args:
        job_ids: the jobs.
        ended: more of them, of which only those are of interest that are in the queue again.
        users: whose jobs they may be, by their numbers; the present user's if not given.

    Raises:
        NoAnswerError: there is no knowing.
    """
    wanted, ended = set(job_ids), set(ended)
    queue = _queued(users or [os.getuid()]) if wanted | ended else {}
    # Of an array whose waiting part was cancelled, Slurm keeps one record, under the number of the whole.
    records = {job: queue.get(job) or queue.get(job.partition("_")[0]) for job in wanted | ended}
    states = {job: record for job, record in records.items() if record}
    return states | _accounted(sorted(wanted - set(states)))


def _queued(users: Iterable[int]) -> dict[str, JobState]:
    columns = ",".join(f"{name}:{width}" for name, width in QUEUE_FIELDS.items())
    done = _run(["squeue", "-u", ",".join(map(str, users)), "-h", "-r", "-t", "all", "-O", columns])
    if done.returncode != 0:
        raise NoAnswerError(" ".join(done.stderr.split()))
    states = {}
    for line in done.stdout.splitlines():
        job, index, state, restarts, reason = _cut(line)
        known = JobState(state, "" if reason == "None" else reason, int(restarts))
        states[job if index == "N/A" else f"{job}_{index}"] = known
    return states


def _cut(line: str) -> list[str]:
    """A row of squeue's by the widths of its columns; a reason may have spaces in it."""
    ends = list(accumulate(QUEUE_FIELDS.values()))
    return [line[begin:end].strip() for begin, end in zip([0, *ends], ends, strict=False)]


def _accounted(job_ids: Sequence[str]) -> dict[str, JobState]:
    if not job_ids:
        return {}
    done = _run(["sacct", "-X", "-n", "-P", "-j", ",".join(job_ids), "-o", "JobID,State"])
    lines = [line.split("|", 1) for line in done.stdout.splitlines() if "|" in line] if done.returncode == 0 else []
    return {job: JobState(state.split()[0].rstrip("+")) for job, state in lines if job in job_ids and state}


def _run(command: list[str], stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command of Slurm's; one that is missing or does not answer counts as failed, with that as its words."""
    start = time.monotonic()
    try:
        done = subprocess.run(
            command,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            env=environment_for_sbatch(),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    except FileNotFoundError:
        return subprocess.CompletedProcess(command, 127, "", f"there is no {command[0]} on the path")
    except subprocess.TimeoutExpired:
        return _unanswered(command, PATIENCE_S)
    words = " ".join(done.stderr.split())
    if done.returncode and _is_silence(words):
        return _unanswered(command, time.monotonic() - start, f" ({words})")
    return done


def _is_silence(words: str) -> bool:
    return any(silence in words.lower() for silence in _WORDS_OF_SILENCE)


def _unanswered(command: list[str], seconds: float, words: str = "") -> subprocess.CompletedProcess[str]:
    said = f"Slurm did not answer {command[0]} in {seconds:.0f} s{words}"
    return subprocess.CompletedProcess(command, NO_ANSWER, "", said)
