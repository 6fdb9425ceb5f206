"""What is asked of Slurm, and what it answers: a thin layer over its commands, which alone every cluster has."""

import shutil
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from imgnet.config import ConfigError, SlurmConfig
from imgnet.launch.batch import gpus
from imgnet.runtime import environment_for_sbatch

PATIENCE_S = 120
"""How long a busy controller may take to answer."""
NO_SBATCH = "there is no sbatch on the path; type the command on a machine of the cluster, or use cluster=local"
NO_ANSWER = 124
"""Exit status that stands for a controller that hangs or is away; ``timeout`` has it too."""
_WORDS_OF_SILENCE = ("timed out", "unable to contact slurm controller", "connection refused", "connect failure")
ALIVE = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED", "REQUEUED", "RESIZING", "SIGNALING")
_HINTS = (
    ("partition", "cluster.partition"),
    ("account", "cluster.account"),
    ("feature", "cluster.constraint"),
    ("node configuration", "cluster.nodes, cluster.gpus_per_node, cluster.cpus_per_gpu, cluster.mem_gb"),
    ("time limit", "cluster.timeout_min"),
)


@dataclass(frozen=True)
class JobState:
    """What Slurm says of one job."""

    state: str
    """``PENDING``, ``RUNNING``, ``COMPLETED``, ``FAILED``, ``CANCELLED``, ``TIMEOUT``, ``NODE_FAIL``, ..."""
    reason: str = ""
    """Why a job waits or failed, in Slurm's words."""

    @property
    def is_over(self) -> bool:
        """Whether nothing of the job will run any more."""
        return self.state not in ALIVE


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


def submit(script: Path) -> str:
    """Queue a batch script.

    Returns:
        The job's id.

    Raises:
        ConfigError: Slurm did not take it, or did not say so.
    """
    done = _run(["sbatch", "--parsable", str(script)])
    if done.returncode == NO_ANSWER:
        raise ConfigError([f"{done.stderr}; whether it took {script} is not known: see `squeue --me`"])
    if done.returncode != 0:
        raise ConfigError([f"sbatch refused {script}: {' '.join(done.stderr.split())}"])
    return done.stdout.strip().split(";")[0]


def cancel(job_ids: Sequence[str]) -> None:
    """End jobs, whether they wait or run.

    Raises:
        ConfigError: Slurm did not do it.
    """
    done = _run(["scancel", *job_ids])
    if done.returncode != 0:
        raise ConfigError([" ".join(done.stderr.split())])


def job_states(job_ids: Iterable[str]) -> dict[str, JobState]:
    """What Slurm knows of these jobs (``12``, or ``12_3`` in an array); those it has forgotten are left out.

    The queue is asked first. It forgets a job minutes after its end; then accounting is asked, where there is any.

    Raises:
        NoAnswerError: there is no knowing.
    """
    wanted = set(job_ids)
    queue = _queued() if wanted else {}
    # Of an array whose waiting part was cancelled, Slurm keeps one record, under the number of the whole.
    records = {job: queue.get(job) or queue.get(job.partition("_")[0]) for job in wanted}
    states = {job: record for job, record in records.items() if record}
    return states | _accounted(sorted(wanted - set(states)))


def _queued() -> dict[str, JobState]:
    done = _run(["squeue", "--me", "-h", "-r", "-t", "all", "-o", "%F|%K|%T|%r"])
    if done.returncode != 0:
        raise NoAnswerError(" ".join(done.stderr.split()))
    states = {}
    for line in done.stdout.splitlines():
        job, index, state, reason = line.split("|", 3)
        states[job if index == "N/A" else f"{job}_{index}"] = JobState(state, "" if reason == "None" else reason)
    return states


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
    if done.returncode and any(silence in words.lower() for silence in _WORDS_OF_SILENCE):
        return _unanswered(command, time.monotonic() - start, f" ({words})")
    return done


def _unanswered(command: list[str], seconds: float, words: str = "") -> subprocess.CompletedProcess[str]:
    said = f"Slurm did not answer {command[0]} in {seconds:.0f} s{words}"
    return subprocess.CompletedProcess(command, NO_ANSWER, "", said)
