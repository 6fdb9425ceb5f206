"""What recorded steps spent their time on, worker by worker, and who holds up the others."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any

from imgnet.profile.trace import Worker
from imgnet.results.files import Problems, printable, read_object
from imgnet.results.names import display_path
from imgnet.results.read import Run
from imgnet.results.sheet import Cell, Column, Sheet
from imgnet.rundir import PROFILE

NONE, NAN = "-", math.nan
PARTS = ("data", "forward", "backward", "update", "exposed", "other")
"""Of a step."""


class NoProfileError(Exception):
    """A run that recorded no steps, in one line."""


@dataclass(frozen=True)
class Profile:
    """A run's, of the workers that have written theirs."""

    path: Path
    workers: list[Worker]
    num_workers: int
    """Of the run. One process stands for all of them where they are simulated."""

    def skew_ms(self, worker: Worker) -> float:
        """How much longer it takes by itself than the median of all."""
        return worker.own_ms - median(other.own_ms for other in self.workers)

    @property
    def slowest(self) -> Worker:
        """The worker that takes longest by itself."""
        return max(self.workers, key=lambda worker: worker.own_ms)


def profile_of(run: Run, problems: Problems) -> Profile:
    """The profile in a run directory.

    Raises:
        NoProfileError: there is none.
    """
    files = sorted((run.path / PROFILE).glob("rank_*[0-9].json"), key=lambda file: (len(file.name), file.name))
    workers = [worker for file in files if (worker := _read_worker(file, problems)) is not None]
    if not workers:
        raise NoProfileError(f"{display_path(run.path)}: no profile; profile.steps=20 records one while a run trains")
    simulated = run.settings.get("cluster.num_workers") is not None
    return Profile(run.path, workers, 1 if simulated else int(run.about.get("world_size") or len(workers)))


def _read_worker(file: Path, problems: Problems) -> Worker | None:
    values = read_object(file, problems)
    if values is None:
        return None
    try:
        return Worker(**{entry.name: _typed(values[entry.name], entry.type) for entry in fields(Worker)})
    except (KeyError, TypeError, ValueError):
        problems.add(file, "another version's, or damaged; left out")
        return None


def _typed(value: Any, kind: Any) -> Any:
    if kind is str:
        return printable(str(value))
    number = kind(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def to_json(profile: Profile) -> str:
    """All numbers, with those that follow from them."""
    workers = [
        asdict(worker) | {"own_ms": worker.own_ms, "overlap": worker.overlap, "skew_ms": profile.skew_ms(worker)}
        for worker in profile.workers
    ]
    return (
        json.dumps({"num_workers": profile.num_workers, "slowest": profile.slowest.rank, "workers": workers}, indent=2)
        + "\n"
    )


def profile_sheet(profile: Profile) -> Sheet:
    """A row for each worker, and under them who is slowest and where the traces are."""
    workers, first = profile.workers, profile.workers[0]
    columns = [Column("rank", "rank", [Cell(str(worker.rank), worker.rank) for worker in workers], tells=True)]
    if len({worker.node for worker in workers}) > 1:
        columns.append(Column("node", "node", [Cell(worker.node, worker.node) for worker in workers], tells=True))
    columns += [_column(part, [getattr(worker, f"{part}_ms") for worker in workers]) for part in ("step", *PARTS)]
    columns += [
        _column("messages", [worker.communication_ms for worker in workers]),
        _column("hidden", [worker.hidden_ms for worker in workers]),
        _column("hidden %", [NAN if worker.overlap is None else 100 * worker.overlap for worker in workers], ".0f"),
        _column("skew", [profile.skew_ms(worker) for worker in workers], "+.1f"),
        _column("peak MB", [worker.memory_peak_mb for worker in workers], ",.0f"),
    ]
    title = f"{first.num_steps} steps from step {first.first_step} on, in ms of a step (means)"
    return Sheet(title, columns, _notes(profile))


def _column(title: str, values: Sequence[float], form: str = ".1f") -> Column:
    return Column(title, title, [Cell(NONE if math.isnan(value) else format(value, form), value) for value in values])


def _notes(profile: Profile) -> list[str]:
    notes = [
        f"{' + '.join(PARTS)} = step. exposed: waits for messages; hidden: messages "
        "under way while it computes; skew: step without exposed, beside the median worker's.",
    ]
    slowest = profile.slowest
    if len(profile.workers) > 1:
        share = 100 * profile.skew_ms(slowest) / (slowest.own_ms - profile.skew_ms(slowest))
        skew = f"{profile.skew_ms(slowest):.1f} ms ({share:.0f} %)"
        notes.append(f"Slowest by itself: rank {slowest.rank} on {slowest.node}, {skew} behind the median.")
    if missing := profile.num_workers - len(profile.workers):
        notes.append(f"{missing} of {profile.num_workers} workers have written none.")
    return [*notes, f"Traces for ui.perfetto.dev: {display_path(profile.path / PROFILE)}/rank_<k>.trace.json.gz"]
