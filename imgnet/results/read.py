"""Run directories, read: the only way in which the commands on results learn of runs."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imgnet import rundir
from imgnet.results.files import (
    Problems,
    Table,
    as_number,
    as_text,
    printable,
    read_end,
    read_object,
    read_rows,
    read_settings,
)

COLUMNS_OF_ALL_VERSIONS = ("epoch", "step", "train_loss", "val_acc1", "train_time_s", "consensus_distance")


@dataclass(frozen=True, eq=False)
class Run:
    """One run directory, as far as it could be read."""

    path: Path
    about: Mapping[str, Any]
    """``run.json``."""
    summary: Mapping[str, Any]
    """``summary.json``."""
    settings: Mapping[str, str]
    """The composed configuration in one level, such as ``optimizer.lr``; and ``workers``, their number."""
    overrides: Mapping[str, str]
    """What was typed, by key, without Hydra's ``+``."""
    epochs: Table
    """``metrics.csv``."""
    seed: int | None

    @property
    def status(self) -> str:
        """``queued``, ``running``, ``completed``, ``failed`` or ``preempted``; ``unknown`` where it does not say."""
        return printable(str(self.about.get("status", "unknown")))

    @property
    def is_completed(self) -> bool:
        """Whether its numbers count."""
        return self.status == "completed"

    @property
    def error(self) -> str:
        """The first line of why it failed; empty where it did not."""
        lines = str(self.about.get("error") or "").strip().splitlines()
        return printable(lines[0]) if lines else ""

    def setting(self, key: str) -> str | None:
        """What was typed for a key, or else its value; of a group its option's name."""
        if key in self.overrides:
            return self.overrides[key]
        return self.settings.get(key, self.settings.get(f"{key}.name"))


def read_runs(paths: Sequence[Path], problems: Problems) -> list[Run]:
    """The runs in these run directories, sweeps and folders of sweeps, each once.

    Args:
        paths: what a user named.
        problems: gets a line for each kind of thing that is not whole.
    """
    found: dict[Path, None] = {}
    for path in paths:
        run_dirs = _find(path, problems)
        found |= dict.fromkeys(run_dir.absolute() for run_dir in run_dirs)
    return [run for run_dir in found if (run := read_run(run_dir, problems)) is not None]


def _find(path: Path, problems: Problems) -> list[Path]:
    try:
        run_dirs = rundir.find(path)
    except OSError as error:
        problems.add(path, str(error.strerror).lower())
        return []
    if not run_dirs:
        problems.add(path, "no run directory here or below (there is no run.json)")
    return run_dirs


def read_run(path: Path, problems: Problems) -> Run | None:
    """One run; None where ``run.json`` cannot be read, without which it is none."""
    about = read_object(path / "run.json", problems)
    if about is None:
        return None
    settings = read_settings(path / ".hydra" / "config.yaml", problems)
    if "world_size" in about:
        settings["workers"] = as_text(about["world_size"])
    seed = str(about.get("seed", settings.get("seed")))
    return Run(
        path=path,
        about=about,
        summary=_summary(path / "summary.json", problems),
        settings=settings,
        overrides=_overrides(about.get("overrides")),
        epochs=_epochs(path / "metrics.csv", problems),
        seed=int(seed) if re.fullmatch(r"-?\d{1,18}", seed) else None,
    )


def _summary(path: Path, problems: Problems) -> dict[str, Any]:
    return (read_object(path, problems) or {}) if path.is_file() else {}


def _epochs(path: Path, problems: Problems) -> Table:
    table = read_rows(path, problems)
    for name in COLUMNS_OF_ALL_VERSIONS:
        if table and name not in table:
            problems.add(path, f"no column {name}")
    return table


def _overrides(words: Any) -> dict[str, str]:
    """``{"topology": "ring"}`` of ``["topology=ring"]``."""
    typed = [word for word in words if isinstance(word, str)] if isinstance(words, list) else []
    pairs = [word.lstrip("+~").partition("=") for word in typed]
    return {printable(key): printable(value) for key, equals, value in pairs if equals}


def log_end(run: Run, most_bytes: int) -> str:
    """The last lines of a run's own log, or of its job's."""
    logs = run.path / "logs"
    names = ("slurm.log", "rank_0.log") if (run.path / "submission.json").is_file() else ("rank_0.log",)
    text = next((text for name in names if (text := read_end(logs / name, most_bytes))), "")
    return printable(text, keep="\n\t")


def traceback_of(run: Run, problems: Problems) -> str:
    """What the worker that failed first left of its stack; empty where none did."""
    records = [read_object(path, problems) or {} for path in sorted(run.path.glob("logs/rank_*.exit.json"))]
    raised = [record for record in records if record.get("how") == "raised"]
    first = min(raised, key=lambda record: as_number(record.get("time")), default={})
    return printable(str(first.get("traceback", "")), keep="\n\t")
