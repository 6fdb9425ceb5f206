"""submitit's executor, which makes the script, hands it to ``sbatch`` and gives a job for each run of an array.

Three things of it cannot stay. A pickled function as the job's command: it loses which rank failed first, and a job
could not be repeated by hand; here the command is a shell line. Arrays from 0 on: a run's number is its directory's
name, also where others of the sweep need other resources, or are completed. And ``sbatch`` as it stands: in a job, it
takes that job's variables for options, and it waits for ever for a controller that hangs.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

from submitit import Job, SlurmExecutor
from submitit.core.utils import DelayedSubmission
from submitit.slurm.slurm import SlurmJob

from imgnet.runtime import environment_for_sbatch

PATIENCE_S = 120
"""How long a busy controller may take to answer."""


@final
class BatchExecutor(SlurmExecutor):
    """Makes one job, or one array, of the runs that it maps. It can be made without a Slurm.

    Args:
        folder: where the script goes, as ``<job>_submission.sh``.
        command: what the jobs run, in words of the shell.
    """

    def __init__(self, folder: Path, command: str) -> None:
        super().__init__(folder)
        self._command = command
        self.taken: list[str] = []
        """Jobs that Slurm has taken, also where something failed after that."""

    def script(self) -> str:
        """The text for ``sbatch``."""
        return self._make_submission_file_text(self._command, uid="")

    def queue(self, folders: Sequence[Path]) -> list[Job[Any]]:
        """Hand the script to ``sbatch``.

        Args:
            folders: one for each job; where there are several, their names are the indices of the array.
        """
        return self.map_array(self.script, folders)  # submitit asks for a function; the jobs run the command

    @classmethod
    def affinity(cls) -> int:
        """That of a cluster, also on a machine that only shows what it would submit."""
        return 2

    def _internal_process_submissions(self, delayed_submissions: list[DelayedSubmission]) -> list[Job[Any]]:
        """Queue a job for each run directory that the submissions are about, in one array where there are several."""
        self.folder.mkdir(exist_ok=True)
        whole = self._submit_command(self._command)
        names = [submission.args[0].name for submission in delayed_submissions]
        return [SlurmJob(self.folder, f"{whole.job_id}_{name}" if len(names) > 1 else whole.job_id) for name in names]

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        inside = sorted(os.environ.keys() - environment_for_sbatch().keys())
        unset = [word for name in inside for word in ("-u", name)]
        return ["env", *unset, "timeout", str(PATIENCE_S), "sbatch", str(submission_file_path)]

    def _get_job_id_from_submission_command(self, string: bytes | str) -> str:  # type: ignore[override]
        self.taken.append(super()._get_job_id_from_submission_command(string))
        return self.taken[-1]
