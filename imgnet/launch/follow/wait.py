"""Waiting for jobs of Slurm, and what is shown meanwhile."""

import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus
from rich.live import Live

from imgnet.config import RunConfig, SlurmConfig
from imgnet.launch.causes import RunFailed
from imgnet.launch.follow.observe import Observed, observe
from imgnet.launch.follow.status import describe, status_table
from imgnet.launch.slurm.cancel import stop_others
from imgnet.results.names import typed_path
from imgnet.rundir import read_json

POLL_S = 5.0
"""Between two questions to Slurm, whose controller serves everybody."""


def waits(config: RunConfig) -> bool:
    """Whether the command ends only when this run has."""
    return isinstance(config.cluster, SlurmConfig) and config.cluster.wait


def wait_for(results: Sequence[JobReturn], *, fail_fast: bool) -> None:
    """Show progress until the runs in these directories have ended, and put down how each did.

    Ctrl-C ends the waiting; the jobs go on.

    Args:
        results: of runs that are in Slurm's queue.
        fail_fast: end the others when one has failed, also where its job was lost and could not do so.
    """
    by_dir = {Path(result.working_dir or ""): result for result in results}
    try:
        ended = _watch(list(by_dir), fail_fast=fail_fast)
    except KeyboardInterrupt:
        folders = " ".join(sorted({typed_path(path.parent) for path in by_dir}))
        sys.stderr.write(f"the jobs go on: imgnet status {folders}; imgnet cancel {folders} ends them\n")
        raise
    for one in ended:
        _put_down(one, by_dir[one.run_dir])


def _watch(run_dirs: Sequence[Path], *, fail_fast: bool) -> list[Observed]:
    live = Live(refresh_per_second=1) if sys.stdout.isatty() else None
    said: dict[Path, str] = {}
    with live or nullcontext():
        while True:
            seen = observe(run_dirs)
            if live is not None:
                live.update(status_table(seen))
            else:
                _say_what_changed(seen, said)
            if all(one.is_over for one in seen):
                return seen
            if fail_fast and (failed := next((one for one in seen if one.status == "failed"), None)):
                stop_others(failed.run_dir)
            time.sleep(POLL_S)


def _say_what_changed(seen: Sequence[Observed], said: dict[Path, str]) -> None:
    for one in seen:
        line = describe(one)
        if said.get(one.run_dir) != line:
            print(line, flush=True)
            said[one.run_dir] = line


def _put_down(ended: Observed, result: JobReturn) -> None:
    result.overrides = list(ended.run.get("overrides", []))
    if ended.status == "completed":
        result.status = JobStatus.COMPLETED
        result.return_value = read_json(ended.run_dir / "summary.json").get("val_acc1")
    else:
        result.status = JobStatus.FAILED
        result.return_value = RunFailed(str(ended.run.get("error") or ended.status), f"logs: {ended.run_dir / 'logs'}")
