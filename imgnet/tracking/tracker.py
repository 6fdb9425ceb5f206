"""What a run tells while it goes on: its files, and where else they go."""

import csv
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import StringIO, TextIOWrapper
from pathlib import Path
from types import TracebackType
from typing import Self

from imgnet import rundir
from imgnet.config import RunConfig
from imgnet.profile.recorder import Recorder
from imgnet.runtime import Runtime
from imgnet.tracking.display import build_display
from imgnet.tracking.predicted import PREDICTED, PredictedClock
from imgnet.tracking.sink import Kind
from imgnet.tracking.sinks import open_sinks
from imgnet.tracking.system import SystemMonitor

COLUMNS: tuple[str, ...] = (
    "epoch",
    "step",
    "train_loss",
    "val_loss",
    "val_acc1",
    "val_acc5",
    "train_time_s",
    "images_per_s",
    "consensus_distance",
    "neighbour_distance",
    "lr",
    "eval_time_s",
    "num_val_images",
    "sent_mb",
)
"""Columns of ``metrics.csv``. Accuracies in percent, times in seconds, images per second of all workers together.

``train_time_s`` and ``sent_mb``, in 10^6 bytes and the mean over workers, are of the run up to there.
"""

log = logging.getLogger("imgnet")


class Tracker:
    """Rank 0 writes the run's rows and shows them; every worker writes its own steps and what it takes of its machine.

    Args:
        config: the run.
        runtime: this worker.
        run_dir: where the files go.
        steps_per_epoch: optimizer steps in an epoch.
        done_steps: optimizer steps that an earlier process made; later rows of it are removed, for they come again.
    """

    def __init__(
        self, config: RunConfig, runtime: Runtime, run_dir: Path, steps_per_epoch: int, done_steps: int = 0
    ) -> None:
        self._main = runtime.is_main
        self._run_dir = run_dir
        self._epochs = config.epochs
        self._batch = config.global_batch_size
        self._best_acc1: float | None = None
        self._behind: set[str] = set()
        self._last_log = time.perf_counter(), done_steps
        self._steps = _continued(steps_file(run_dir, runtime.rank), done_steps)
        every_s = config.tracking.system_every_s
        self._system = SystemMonitor(run_dir / "workers", runtime.rank, runtime.device, every_s) if every_s else None
        self._recorder = Recorder(config.profile, runtime, run_dir / rundir.PROFILE, done_steps)
        if not self._main:
            return
        self._predicted = PredictedClock.of_run(run_dir, config.epochs * steps_per_epoch)
        columns = COLUMNS if self._predicted is None else (*COLUMNS, PREDICTED)
        self._best_acc1 = rewind_metrics(run_dir / "metrics.csv", done_steps, columns)
        self._metrics = _open_appending(run_dir / "metrics.csv")
        self._writer: csv.DictWriter[str] = csv.DictWriter(self._metrics, columns, lineterminator="\n")
        self._display = build_display(config, steps_per_epoch, done_steps)
        self._sinks = open_sinks(config, run_dir, done_steps)

    def __enter__(self) -> Self:
        """Show that the run has begun."""
        self._recorder.start()
        if self._system is not None:
            self._system.start()
        if self._main:
            self._display.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close what is open, also when the run failed."""
        self._recorder.close()
        if self._system is not None:
            self._system.stop()
        self._steps.close()
        if not self._main:
            return
        self._display.stop()
        self._metrics.close()
        self._send_system(self._last_log[1])
        for sink in self._sinks:
            try:
                sink.close(failed=kind is not None)
            except Exception as error:  # likewise
                log.warning("%s did not take the last rows: %s", type(sink).__name__, error)

    @contextmanager
    def _though_disk_is_full(self, file: str) -> Iterator[None]:
        """Warn once instead of failing. The rows stay in the file's buffer, and are written with the next ones."""
        try:
            yield
        except OSError as error:
            if file not in self._behind:
                log.warning("%s not written for now: %s; training goes on", file, error.strerror)
            self._behind.add(file)
        else:
            self._behind.discard(file)

    def go_on(self, step: int) -> None:
        """Training begins, or goes on after a pause, which is no part of the next row's times.

        Args:
            step: optimizer steps made so far.
        """
        self._last_log = time.perf_counter(), step

    def advance(self) -> None:
        """Count one optimizer step. Waits for nothing, but writes the profile after the last step that it has."""
        if spent_s := self._recorder.advance():
            self._last_log = self._last_log[0] + spent_s, self._last_log[1]
        if self._main:
            self._display.advance()

    def log_step(
        self, *, epoch: int, step: int, loss: float, lr: float, data_wait_s: float, communication_wait_s: float
    ) -> None:
        """Write the row of a logged step. Times are means over the steps since the last one, of this worker.

        Args:
            epoch: from 1.
            step: optimizer steps made so far.
            loss: this worker's training loss.
            lr: learning rate.
            data_wait_s: seconds that it waited for batches since the last logged step.
            communication_wait_s: seconds that it waited for averages since then.
        """
        now, (then, last_step) = time.perf_counter(), self._last_log
        num_steps = step - last_step
        self._last_log = now, step
        seconds = (now - then) / num_steps
        row = {
            "epoch": epoch,
            "step": step,
            "loss": loss,
            "lr": lr,
            "step_s": seconds,
            "data_s": data_wait_s / num_steps,
            "communication_s": communication_wait_s / num_steps,
            "images_per_s": self._batch / seconds,
        }
        row["compute_s"] = row["step_s"] - row["data_s"] - row["communication_s"]
        with self._though_disk_is_full("steps.jsonl"):
            self._steps.write(json.dumps(row) + "\n")
        if self._main:
            self._display.show_step(row)
            self._send(Kind.step, row, step)
            self._send_system(step)

    def _send(self, kind: Kind, row: Mapping[str, float], step: int) -> None:
        for sink in list(self._sinks):
            try:
                sink.log(kind, row, step)
            except Exception as error:  # whatever a service fails with: the run's own files have the row
                log.warning("%s takes no more rows: %s; training goes on", type(sink).__name__, error)
                self._sinks.remove(sink)

    def _send_system(self, step: int) -> None:
        row = self._system.newest() if self._system is not None and self._sinks else {}
        if row:
            self._send(Kind.system, row, step)

    def end_epoch(self, row: Mapping[str, float]) -> None:
        """Write the row of an epoch, and bring ``summary.json`` up to date."""
        if not self._main:
            return
        if self._predicted is not None:
            row = {**row, PREDICTED: self._predicted.at(int(row["step"]))}
        with self._though_disk_is_full("metrics.csv"):
            self._writer.writerow(row)
        if "val_acc1" in row:
            self._best_acc1 = max(row["val_acc1"], self._best_acc1 or 0.0)
        summary = dict(row) | {"best_acc1": self._best_acc1, "status": "running"}
        with self._though_disk_is_full("summary.json"):
            rundir.write_summary(self._run_dir, summary)
        self._display.show_epoch(row)
        log.info("epoch %d/%d %s", row["epoch"], self._epochs, json.dumps(dict(row)))
        self._send(Kind.epoch, row, int(row["step"]))
        self._send_system(int(row["step"]))


def steps_file(run_dir: Path, rank: int) -> Path:
    """Where the logged steps of a worker are written."""
    return run_dir / "steps.jsonl" if rank == 0 else run_dir / "workers" / f"steps_{rank}.jsonl"


def _continued(steps: Path, done_steps: int) -> TextIOWrapper:
    steps.parent.mkdir(exist_ok=True)
    rewind_steps(steps, done_steps)
    return _open_appending(steps)


def rewind_metrics(path: Path, done_steps: int, columns: Sequence[str] = COLUMNS) -> float | None:
    """Keep the rows up to a step, under a header with these columns; begin the file where there is none.

    Returns:
        The best top-1 accuracy of the rows that stay, in percent.
    """
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    rows = [row for row in csv.DictReader(lines) if row["step"] and int(row["step"]) <= done_steps]
    text = StringIO(newline="")
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    rundir.write_atomically(path, text.getvalue())
    return max((float(row["val_acc1"]) for row in rows if row["val_acc1"]), default=None)


def rewind_steps(path: Path, done_steps: int) -> None:
    """Keep the rows up to a step. A last line that a crash cut short goes as well."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        with suppress(json.JSONDecodeError):
            if json.loads(line)["step"] <= done_steps:
                kept.append(line + "\n")
    rundir.write_atomically(path, "".join(kept))


def _open_appending(path: Path) -> TextIOWrapper:
    return path.open("a", encoding="utf-8", buffering=1, newline="")
