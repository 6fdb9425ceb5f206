"""The batch script of an array of runs that ask for the same resources. Pure: text from values, every value quoted.

The script is our own, and not submitit's, which would run a pickled function and report success whatever it raised,
look at the first task's result only, and hide the command from whoever reads the script.
"""

import os
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from imgnet.config import RunConfig, SlurmConfig

OURS = ("array", "chdir", "ntasks-per-node", "open-mode", "output", "parsable", "test-only", "wait", "wrap")
"""sbatch options that a user may not set, because the script depends on them."""
BYTES_PER_GB, BYTES_PER_SLURM_MB = 10**9, 2**20


@dataclass(frozen=True)
class QueuedRun:
    """A run that was accepted, and where it goes."""

    number: int
    """Of the sweep; the name of its directory and its index in the array."""
    config: RunConfig
    overrides: list[str]
    run_dir: Path


@dataclass(frozen=True)
class JobArray:
    """Runs of equal resources, in one folder, each in a directory that is named by its number."""

    cluster: SlurmConfig
    runs: list[QueuedRun]
    code: Path
    """The folder whose ``imgnet`` the job imports."""
    working_dir: Path
    """What relative paths in the configuration refer to."""

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
    """The whole script. It hands over to :mod:`imgnet.launch.job`, which starts one task on each node with ``srun``."""
    lines = ["#!/bin/bash", *(f"#SBATCH {_option(*item)}" for item in _options(array).items()), "", "set -e"]
    # Where its --chdir is gone, Slurm starts a job in /tmp.
    lines += [f"cd -- {shlex.quote(str(array.working_dir))}"]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in array.cluster.env.items()]
    lines += array.cluster.setup
    lines += [
        # Before everything else, and with -P below: an edited file in the working directory must not be imported.
        f"export PYTHONPATH={shlex.quote(str(array.code))}${{PYTHONPATH:+:$PYTHONPATH}}",
        f"run={_run_dir(array)}",
        f'exec {_python("imgnet.launch.job")} "$run" \\',
        f"  {shlex.join(_srun(array.cluster))} \\",
        f'  {_python("imgnet.launch.node")} "$run"',
    ]
    return "\n".join(lines) + "\n"


def _options(array: JobArray) -> dict[str, str]:
    cluster, names = array.cluster, sorted({run.config.name for run in array.runs})
    mem = None if cluster.mem_gb is None else f"{cluster.mem_gb * BYTES_PER_GB // BYTES_PER_SLURM_MB}M"
    options: dict[str, str | int | None] = {
        "job-name": ",".join(names),
        "nodes": cluster.nodes,
        "ntasks-per-node": 1,
        "gres": gpus(cluster),
        "cpus-per-task": cluster.cpus_per_gpu * cluster.gpus_per_node,
        "mem": mem,
        "time": cluster.timeout_min,
        "partition": cluster.partition,
        "account": cluster.account,
        "constraint": cluster.constraint,
        "exclude": cluster.exclude,
        "chdir": str(array.working_dir),
        "output": _output(array),
        "open-mode": "append",
        "requeue" if cluster.max_requeues else "no-requeue": "",
        # To the tasks of all nodes, which have their workers save and end; job.py then queues the job again.
        "signal": f"USR2@{60 * cluster.notice_min}" if cluster.max_requeues else None,
    }
    if len(array.runs) > 1:
        at_once = f"%{cluster.max_parallel}" if cluster.max_parallel else ""
        options["array"] = ranges(run.number for run in array.runs) + at_once
    return {name: str(value) for name, value in options.items() if value is not None} | dict(cluster.sbatch)


def gpus(cluster: SlurmConfig) -> str:
    """What a node must have, in Slurm's words: ``gpu:A40:4``."""
    return ":".join(["gpu", *([cluster.gpu_type] if cluster.gpu_type else []), str(cluster.gpus_per_node)])


def _option(name: str, value: str) -> str:
    return f"--{name}={shlex.quote(value)}" if value else f"--{name}"


def _run_dir(array: JobArray) -> str:
    first = array.runs[0].run_dir
    if len(array.runs) == 1:
        return shlex.quote(str(first))
    return f'{shlex.quote(str(first.parent))}/"$SLURM_ARRAY_TASK_ID"'


def _output(array: JobArray) -> str:
    """The log of each run in its own directory. Slurm reads ``%`` in it: ``%a`` is the index in the array."""
    first = array.runs[0].run_dir
    folder, name = str(first.parent).replace("%", "%%"), first.name.replace("%", "%%")
    return f"{folder}/{name if len(array.runs) == 1 else '%a'}/logs/slurm.log"


def _srun(cluster: SlurmConfig) -> list[str]:
    # Since Slurm 22.05 srun does not take the number of cores over from sbatch.
    cores = cluster.cpus_per_gpu * cluster.gpus_per_node
    return ["srun", "--kill-on-bad-exit=1", "--ntasks-per-node=1", f"--cpus-per-task={cores}", *cluster.srun]


def _python(module: str) -> str:
    return f"{shlex.quote(sys.executable)} -P -m {module}"


def ranges(numbers: Iterable[int]) -> str:
    """``0-3,6`` for 0, 1, 2, 3, 6."""
    runs = groupby(enumerate(sorted(numbers)), key=lambda pair: pair[1] - pair[0])
    spans = [[number for _, number in pairs] for _, pairs in runs]
    return ",".join(str(span[0]) if len(span) == 1 else f"{span[0]}-{span[-1]}" for span in spans)


def problems(cluster: SlurmConfig) -> list[str]:
    """What in the free parts of a cluster would not be read by Slurm as it was meant."""
    found = [f"cluster.env.{name}: no name of a variable" for name in _not_like(r"[A-Za-z_][A-Za-z0-9_]*", cluster.env)]
    found += [
        f"cluster.sbatch.{name}: no long name of an sbatch option (such as qos or mail-type)"
        for name in _not_like(r"[a-z][a-z0-9-]*", cluster.sbatch)
    ]
    found += [f"cluster.sbatch.{name} is set by this package; remove it" for name in cluster.sbatch if name in OURS]
    words = {name: value for name, value in vars(cluster).items() if isinstance(value, str)}
    words |= {f"sbatch.{name}": value for name, value in cluster.sbatch.items()}
    return found + [f"cluster.{name}={value!r}: {why}" for name, value in words.items() if (why := _unreadable(value))]


def problems_of_folders(runs: Sequence[QueuedRun], working_dir: Path) -> list[str]:
    """Why Slurm, or Python in its jobs, would take the folders of these runs for others."""
    folders = sorted({run.run_dir.parent for run in runs})
    # What lies in the working directory shares its faults.
    told = {working_dir: str(working_dir)} | {one: str(one).removeprefix(f"{working_dir}{os.sep}") for one in folders}
    found = [f"'{folder}': {why}" for folder, text in told.items() if (why := _unreadable(text))]
    # The code of a job lies in the folder of its sweep.
    unimportable = [folder for folder in folders if os.pathsep in str(folder)]
    return found + [f"'{folder}': no job imports its code from a path with {os.pathsep!r}" for folder in unimportable]


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
