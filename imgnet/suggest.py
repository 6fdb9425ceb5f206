"""What a line that refuses a name says of the names that are known."""

from collections.abc import Collection
from difflib import get_close_matches

RENAMED = {
    "cluster.cpus_per_gpu": "cluster.cpus_per_task",
    "cluster.max_parallel": "cluster.array_parallelism",
    "cluster.max_requeues": "cluster.max_num_timeout",
    "cluster.notice_min": "cluster.signal_delay_s",
    "cluster.sbatch": "cluster.additional_parameters",
    "cluster.srun": "cluster.srun_args",
}
"""Keys that had names of ours, and have submitit's."""
GONE = {
    "topology.every": "workers rest between averages with averaging=local averaging.every=K averaging.overlap=true",
    **{old: f"it is {new}" for old, new in RENAMED.items()},
    "cluster.notice_min": "it is cluster.signal_delay_s, in seconds",
}
"""Keys that there were, and what says the same now."""
ELSEWHERE = {
    "cluster.exclusive": "write +cluster.additional_parameters.exclusive=true",
    "cluster.gpus_per_task": "one for each task; cluster.gpus_per_node says how many there are",
    "cluster.gres": "cluster.gpus_per_node and cluster.gpu_type say it, cluster.additional_parameters.gres all of it",
    "cluster.stderr_to_stdout": "both are in logs/slurm.log of the run directory",
    "cluster.submitit_folder": "hydra.sweep.dir is the folder",
    "cluster.teardown": "the job ends with the process that writes how the run ended",
    "cluster.wckey": "write +cluster.additional_parameters.wckey=...",
}
"""Parameters of submitit that say nothing here, and what says it."""


def nearest(name: str, known: Collection[str]) -> str:
    """``did you mean 'x'?`` or the known names, for the end of a line that refuses ``name``."""
    return did_you_mean(name, known) or f"known: {', '.join(sorted(known))}"


def did_you_mean(name: str, known: Collection[str]) -> str:
    """``did you mean 'x'?``; empty where no known name is near."""
    close = get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else ""


def unknown_key(key: str, known: Collection[str]) -> str:
    """The line for a key that its place does not have.

    Args:
        key: from the root on, such as ``optimizer.betaz``.
        known: the keys of that place; empty where it has none, or where they cannot be named.
    """
    for old, instead in GONE.items():
        if key == old or key.startswith(f"{old}."):
            return f"there is no {old} any more; {instead}"
    if key in ELSEWHERE:
        return f"there is no {key}: {ELSEWHERE[key]}"
    parent, _, name = key.rpartition(".")
    where = f"in {parent}, " if parent else ""
    return f"unknown key {key!r}; {where}{nearest(name, known)}" if known else f"unknown key {key!r}"
