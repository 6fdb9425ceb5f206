"""What `imgnet status` shows: one row for each run, and under the failed ones their first line of error."""

import time
from collections.abc import Sequence
from os.path import commonpath
from pathlib import Path

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from imgnet.launch.follow.observe import Observed
from imgnet.launch.repeats import counts
from imgnet.results.names import differing, display_path
from imgnet.rundir import read_json

ENDS_OF_NOTE = ("failed", "cancelled")
"""What is shown with its reason, as is a run that saved and was not queued again."""


def by_time(run_dirs: Sequence[Path]) -> list[Path]:
    """In the order in which they were last submitted or started; runs of a sweep stay together, in their own order."""
    latest: dict[Path, str] = {}
    for run_dir in run_dirs:
        latest[run_dir.parent] = max(latest.get(run_dir.parent, ""), _when(run_dir))
    return sorted(run_dirs, key=lambda run: (latest[run.parent], run.parent, len(run.name), run.name))


def _when(run_dir: Path) -> str:
    submitted = read_json(run_dir / "submission.json").get("submitted")
    return max(submitted or "", read_json(run_dir / "run.json").get("start") or "")


def status_table(seen: Sequence[Observed]) -> Group:
    """The folder of the runs, a table of what was typed for each and how it does, the errors of those that failed."""
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("run", "overrides", "job", "state"):
        table.add_column(column, overflow="fold")
    for column in ("epoch", "top-1 %", "left"):
        table.add_column(column, justify="right")
    folder = Path(commonpath([one.run_dir.parent for one in seen])) if seen else Path()
    for one, name in zip(seen, _names(seen), strict=True):
        run = one.run_dir.relative_to(folder)
        table.add_row(*map(Text, (str(run), name or "-", one.job_id or "-", _state(one), *_progress(one))))
    errors = [Text(error_of(one)) for one in seen if _is_of_note(one)]
    return Group(Text(f"runs in {display_path(folder)}"), table, *errors)


def _names(seen: Sequence[Observed]) -> list[str]:
    """What was typed for each run, as far as they differ in it and it may change what they give."""
    return differing([[word for word in one.run.get("overrides", []) if counts(word)] for one in seen])


def show_status(seen: Sequence[Observed], console: Console | None = None) -> None:
    """Print the table."""
    console = console or Console()
    if not console.is_terminal:  # rich would assume 80 columns and cut words; a log or a pipe has no width
        console = Console(width=200, file=console.file)
    console.print(status_table(seen), soft_wrap=True)


def error_of(one: Observed) -> str:
    """The first line of a failed run's error, and where to read on, if it left a log."""
    first = (str(one.run.get("error") or "no error was written").splitlines() or [""])[0]
    log = log_of(one.run_dir)
    return f"{display_path(one.run_dir)}: {first}{f'; log: {display_path(log)}' if log.is_file() else ''}"


def log_of(run_dir: Path, rank: int | None = None) -> Path:
    """The file to read first: the job's output, or rank 0's log for a run on this machine."""
    if rank is None and (run_dir / "submission.json").is_file():
        return run_dir / "logs" / "slurm.log"
    return run_dir / "logs" / f"rank_{rank or 0}.log"


def describe(one: Observed) -> str:
    """One line about a run, which changes when its state or its epoch does."""
    epoch, acc1, _ = _progress(one)
    words = [display_path(one.run_dir), f"job {one.job_id}", _state(one), f"epoch {epoch}", f"top-1 {acc1} %"]
    return f"{'  '.join(words)}  {one.run.get('error')}" if _is_of_note(one) else "  ".join(words)


def _is_of_note(one: Observed) -> bool:
    return one.status in ENDS_OF_NOTE or (one.status == "preempted" and one.is_over and bool(one.run.get("error")))


def _state(one: Observed) -> str:
    return f"{one.state} ({one.reason})" if one.reason else one.state


def _progress(one: Observed) -> tuple[str, str, str]:
    """Epochs done of all, the last validation top-1, and the time left."""
    path = one.run_dir / "summary.json"
    summary, epochs = read_json(path), int(one.run.get("epochs", 0))
    done, acc1 = int(summary.get("epoch", 0)), summary.get("val_acc1")
    left = "-"
    if done and not one.is_over:
        each = (summary["train_time_s"] / done) + summary.get("eval_time_s", 0.0)
        left = duration(max(0.0, (epochs - done) * each - (time.time() - path.stat().st_mtime)))
    return f"{done}/{epochs}", "-" if acc1 is None else f"{acc1:.2f}", left


def duration(seconds: float) -> str:
    """Such as ``2:05 h``, ``12 min`` or ``40 s``."""
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60}:{minutes % 60:02d} h"
    return f"{minutes} min" if minutes else f"{seconds:.0f} s"
