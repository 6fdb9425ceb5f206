"""The job after all others of a sweep: it runs the command that ``on_sweep_end`` is.

It waits for them in Slurm's queue (``afterany``), however they end, so that nothing of ours need outlive them.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from imgnet.config import SlurmConfig
from imgnet.launch.slurm.executor import BatchExecutor
from imgnet.launch.together import words_of
from imgnet.runtime import path_of_commands

SAME = ("timeout_min", "partition", "account", "qos", "constraint")
"""What it has in common with the runs; it needs one core of one node."""
LOG = "on_sweep_end.log"
"""In the sweep's folder: what the command printed."""


@dataclass(frozen=True)
class LastJob:
    """The command after the last run, as a job."""

    command: str
    cluster: SlurmConfig
    folder: Path
    """Of the sweep."""
    code: Path
    """Its snapshot of the code, from which the command imports ``imgnet``."""
    working_dir: Path
    """Of the command that submits it."""

    def script(self, after: Sequence[str] = ()) -> str:
        """The text for ``sbatch``; ``after`` as for :meth:`submit`."""
        return self._executor(after).script()

    def submit(self, after: Sequence[str]) -> str:
        """Queue it behind other jobs.

        Args:
            after: their numbers.

        Returns:
            Its own number.
        """
        (job,) = self._executor(after).queue([self.folder])
        return job.job_id

    def _executor(self, after: Sequence[str]) -> BatchExecutor:
        executor = BatchExecutor(self.folder / "slurm", f"exec {shlex.join(words_of(self.command, self.folder))}")
        wanted = {name: value for name in SAME if (value := getattr(self.cluster, name)) is not None}
        wanted |= {"name": "on_sweep_end", "nodes": 1, "tasks_per_node": 1, "cpus_per_task": 1}
        if after:
            wanted["dependency"] = "afterany:" + ":".join(after)
        output = f"{str(self.folder).replace('%', '%%')}/{LOG}"
        executor.update_parameters(
            **executor._convert_parameters(wanted),
            use_srun=False,
            stderr_to_stdout=True,
            setup=self._setup(),
            additional_parameters={"chdir": self.working_dir, "output": output},
        )
        return executor

    def _setup(self) -> list[str]:
        return [
            "set -e",
            f"cd -- {shlex.quote(str(self.working_dir))}",
            f"export PATH={shlex.quote(path_of_commands())}",
            f"export PYTHONPATH={shlex.quote(str(self.code))}${{PYTHONPATH:+:$PYTHONPATH}}",
        ]
