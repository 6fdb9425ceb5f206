"""The batch script of an array of runs that ask for the same resources: submitit's, around our first process of a job.

submitit makes the script from its own parameters, and its command is :mod:`imgnet.launch.slurm.job`, which outlives the
workers (:mod:`imgnet.launch.slurm.executor` says why).
"""

import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from imgnet.config import RunConfig, SlurmConfig
from imgnet.launch.slurm.executor import BatchExecutor

PASSED = (
    "nodes",
    "cpus_per_task",
    "mem_gb",
    "mem_per_gpu",
    "mem_per_cpu",
    "timeout_min",
    "partition",
    "account",
    "qos",
    "constraint",
    "exclude",
    "nodelist",
    "dependency",
    "comment",
    "mail_user",
    "mail_type",
)
"""Keys of a cluster that go to submitit as they are."""
OURS = ("array", "chdir", "error", "open-mode", "output", "parsable", "signal", "test-only", "wait", "wrap")
"""sbatch options that a user may not set, because the script depends on them."""
SAID_BY = {
    **{name.replace("_", "-"): name for name in PASSED},
    "gpus-per-node": "gpus_per_node",
    "mem": "mem_gb",
    "no-requeue": "max_num_timeout",
    "ntasks-per-node": "gpus_per_node",
    "requeue": "max_num_timeout",
    "time": "timeout_min",
}
"""sbatch options that have a key of their own."""


@dataclass(frozen=True)
class QueuedRun:
    """A run that was accepted, and where it goes."""

    number: int
    """Of the sweep; the name of its directory and its index in the array."""
    config: RunConfig
    overrides: list[str]
    run_dir: Path
    sources: list[str]
    """Further words for ``run.py``, for which the overrides mean the same: ``--config-name``, ``hydra.searchpath``."""


@dataclass(frozen=True)
class JobArray:
    """Runs of equal resources, in one folder, each in a directory that is named by its number."""

    cluster: SlurmConfig
    runs: list[QueuedRun]
    code: Path
    """The folder whose ``run.py`` the job executes, and whose ``imgnet`` it imports."""
    working_dir: Path
    """What relative paths in the configuration refer to."""

    @property
    def shares(self) -> bool:
        """Whether runs share jobs."""
        return self.cluster.runs_per_job > 1

    @property
    def jobs(self) -> list[list[QueuedRun]]:
        """The runs of each job; the number of the first is the job's index in the array."""
        size = self.cluster.runs_per_job
        return [self.runs[start : start + size] for start in range(0, len(self.runs), size)]

    @property
    def world_size(self) -> int:
        """Workers of each run."""
        return self.cluster.nodes * self.cluster.gpus_per_node


def arrays_of(runs: Sequence[QueuedRun], code: Path, working_dir: Path) -> list[JobArray]:
    """The fewest arrays that give every run its own resources, in the order of their first runs."""
    found: dict[str, list[QueuedRun]] = {}
    for run in runs:
        found.setdefault(repr(run.config.cluster), []).append(run)
    arrays = []
    for members in found.values():
        cluster = members[0].config.cluster
        assert isinstance(cluster, SlurmConfig)
        arrays.append(JobArray(cluster, members, code, working_dir))
    return arrays


def batch_script(array: JobArray) -> str:
    """The whole script. It hands over to :mod:`imgnet.launch.slurm.job`, which starts the workers with ``srun``."""
    return executor_of(array).script()


def executor_of(array: JobArray) -> BatchExecutor:
    """What makes and submits the script; it keeps it in ``slurm/`` of the sweep's folder."""
    executor = BatchExecutor(array.runs[0].run_dir.parent / "slurm", _command(array))
    executor.update_parameters(**executor._convert_parameters(_resources(array)), **_placement(array))
    return executor


def _resources(array: JobArray) -> dict[str, Any]:
    """What the jobs ask for, in submitit's words that all its executors share, and in those of Slurm."""
    cluster = array.cluster
    wanted = {name: getattr(cluster, name) for name in PASSED} | {
        "name": ",".join(sorted({run.config.name for run in array.runs})),
        "tasks_per_node": cluster.gpus_per_node,
        "gres": gpus(cluster),
        # To all workers, which save and end; job.py then queues the job again. 0: never.
        "signal_delay_s": cluster.signal_delay_s if cluster.max_num_timeout else 0,
    }
    return {name: value for name, value in wanted.items() if value is not None}


def _placement(array: JobArray) -> dict[str, Any]:
    """Where the script runs, what it prints to, and what it does before its command."""
    cluster = array.cluster
    own: dict[str, Any] = {"chdir": array.working_dir, "output": _output(array)}
    own["requeue" if cluster.max_num_timeout else "no-requeue"] = True
    if len(array.jobs) > 1:
        at_once = f"%{cluster.array_parallelism}" if cluster.array_parallelism else ""
        own["array"] = ranges(runs[0].number for runs in array.jobs) + at_once
    options = own | cluster.additional_parameters
    return {"use_srun": False, "stderr_to_stdout": True, "setup": _setup(array), "additional_parameters": options}


def _setup(array: JobArray) -> list[str]:
    return [
        "set -e",
        f"cd -- {shlex.quote(str(array.working_dir))}",  # where its --chdir is gone, Slurm starts a job in /tmp
        *(f"export {name}={shlex.quote(value)}" for name, value in array.cluster.env.items()),
        *array.cluster.setup,
        # Before everything else, and with -P below: an edited file in the working directory must not be imported.
        f"export PYTHONPATH={shlex.quote(str(array.code))}${{PYTHONPATH:+:$PYTHONPATH}}",
        f"run={_run_dir(array)}",
    ]


def _command(array: JobArray) -> str:
    python, run_py = f"{shlex.quote(sys.executable)} -P", shlex.quote(str(array.code / "run.py"))
    job = f'{python} -m imgnet.launch.slurm.{"pack" if array.shares else "job"} "$run"'
    return f"exec {job} \\\n  {shlex.join(_srun(array.cluster))} \\\n  {python} {run_py}"


def gpus(cluster: SlurmConfig) -> str:
    """What a node must have, in Slurm's words: ``gpu:A40:4``."""
    return ":".join(["gpu", *([cluster.gpu_type] if cluster.gpu_type else []), str(cluster.gpus_per_node)])


def _run_dir(array: JobArray) -> str:
    first = array.runs[0].run_dir
    if len(array.jobs) == 1:
        return shlex.quote(str(first))
    return f'{shlex.quote(str(first.parent))}/"$SLURM_ARRAY_TASK_ID"'


def _output(array: JobArray) -> str:
    """The log of each job, in the directory of its first run. Slurm reads ``%`` in it: ``%a`` is the array's index."""
    first = array.runs[0].run_dir
    folder, name = str(first.parent).replace("%", "%%"), first.name.replace("%", "%%")
    return f"{folder}/{name if len(array.jobs) == 1 else '%a'}/logs/slurm.log"


def _srun(cluster: SlurmConfig) -> list[str]:
    return [
        "srun",
        "--kill-on-bad-exit=1",
        "--wait=0",  # rank 0 may write for longer than a site lets the last task of a step live
        "--distribution=block",  # ranks of a node are contiguous
        "--cpu-bind=none",  # workers bind themselves, next to their GPUs
        f"--cpus-per-task={cluster.cpus_per_task}",  # since Slurm 22.05 srun does not take it over from sbatch
        *(["--overlap"] if cluster.runs_per_job > 1 else []),  # steps of one job wait for each other without
        *cluster.srun_args,
    ]


def ranges(numbers: Iterable[int]) -> str:
    """``0-3,6`` for 0, 1, 2, 3, 6."""
    runs = groupby(enumerate(sorted(numbers)), key=lambda pair: pair[1] - pair[0])
    spans = [[number for _, number in pairs] for _, pairs in runs]
    return ",".join(str(span[0]) if len(span) == 1 else f"{span[0]}-{span[-1]}" for span in spans)


def problems(cluster: SlurmConfig) -> list[str]:
    """What in the free parts of a cluster would not be read by Slurm as it was meant."""
    found = [f"cluster.env.{name}: no name of a variable" for name in _not_like(r"[A-Za-z_][A-Za-z0-9_]*", cluster.env)]
    for name, value in cluster.additional_parameters.items():
        found += [f"cluster.additional_parameters.{name}{why}" for why in _wrong_option(str(name), value)]
    words = {name: value for name, value in vars(cluster).items() if isinstance(value, str)}
    found += [f"cluster.{name}={value!r}: {why}" for name, value in words.items() if (why := _unreadable(value))]
    found += [
        f"cluster.srun_args[{place}]={word!r}: must be an option with its value, such as --mpi=none"
        for place, word in enumerate(cluster.srun_args)
        if not re.match(r"--?[A-Za-z]", word)
    ]
    return [*found, *_contradictions(cluster)]


def _wrong_option(name: str, value: Any) -> Iterator[str]:
    """What stands against an sbatch option, for the end of a line that begins with its name."""
    if name in OURS:
        yield " is set by this package; remove it"
    elif key := SAID_BY.get(name.replace("_", "-")):
        yield f" has a key of its own; write cluster.{key}=..."
    elif not re.fullmatch(r"[a-z][a-z0-9-]*", name):
        yield ": no long name of an sbatch option (such as hold or exclusive)"
    elif isinstance(value, str) and value:
        yield from (f"={value!r}: {why}" for why in [_unreadable(value)] if why)
    elif value is not True and (isinstance(value, bool) or not isinstance(value, int | float)):
        yield f"={value!r}: must be a word or a number; an option without a value is true"


def _contradictions(cluster: SlurmConfig) -> Iterator[str]:
    if cluster.tasks_per_node not in (None, cluster.gpus_per_node):
        yield (
            f"cluster.tasks_per_node={cluster.tasks_per_node} contradicts cluster.gpus_per_node="
            f"{cluster.gpus_per_node}: a task is a worker, one for each GPU; leave it out"
        )
    memory = [name for name in ("mem_gb", "mem_per_gpu", "mem_per_cpu") if getattr(cluster, name) is not None]
    if len(memory) > 1:
        yield f"cluster.{' and cluster.'.join(memory)} say the same thing twice; leave all but one out"


def problems_of_folders(runs: Sequence[QueuedRun], working_dir: Path) -> list[str]:
    """Why Slurm, or Python in its jobs, would take the folders of these runs for others."""
    folders = sorted({run.run_dir.parent for run in runs})
    # What lies in the working directory shares its faults.
    told = {working_dir: str(working_dir)} | {one: str(one).removeprefix(f"{working_dir}{os.sep}") for one in folders}
    found = [f"'{folder}': {why}" for folder, text in told.items() if (why := _unreadable(text))]
    # The code of a job lies in the folder of its sweep.
    for folder in map(str, folders):
        if os.pathsep in folder:
            found.append(f"'{folder}': no job imports its code from a path with {os.pathsep!r}")
        found += [f"'{folder}': submitit replaces {tag!r} in it" for tag in ("%j", "%t", "%A", "%a") if tag in folder]
    return found


def _unreadable(value: str) -> str:
    if "\n" in value:
        return "must be one line"
    if "\\" in value:
        return "must be without a backslash, which Slurm reads in its own way"
    try:
        value.encode()
    except UnicodeEncodeError:
        return "must be UTF-8"
    return ""


def _not_like(pattern: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if not re.fullmatch(pattern, name)]
