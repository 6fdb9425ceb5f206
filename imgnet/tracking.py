"""What a run tells while it goes on: files in its directory, a line or a bar in the terminal, Weights & Biases."""

import csv
import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from io import StringIO, TextIOWrapper
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from imgnet import rundir
from imgnet.config import RunConfig, TrackingConfig, WandbMode
from imgnet.runtime import Runtime

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
)
"""Columns of ``metrics.csv``. Accuracies in percent, times in seconds, images per second of all workers together."""

log = logging.getLogger("imgnet")


class Tracker:
    """Rank 0 writes; on the other ranks every method does nothing.

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
        if not self._main:
            return
        self._best_acc1 = rewind_metrics(run_dir / "metrics.csv", done_steps)
        rewind_steps(run_dir / "steps.jsonl", done_steps)
        self._metrics = _open_appending(run_dir / "metrics.csv")
        self._writer: csv.DictWriter[str] = csv.DictWriter(self._metrics, COLUMNS, lineterminator="\n")
        self._steps = _open_appending(run_dir / "steps.jsonl")
        self._display = _display(config, steps_per_epoch, done_steps)
        self._wandb = start_wandb(config.tracking, asdict(config), run_dir, config.name)

    def __enter__(self) -> Self:
        """Show that the run has begun."""
        if self._main:
            self._display.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close what is open, also when the run failed."""
        if not self._main:
            return
        self._display.stop()
        self._metrics.close()
        self._steps.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=1 if kind else 0)

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

    def advance(self) -> None:
        """Count one optimizer step. Waits for nothing."""
        if self._main:
            self._display.advance()

    def log_step(
        self, *, epoch: int, step: int, loss: float, lr: float, data_wait_s: float, communication_wait_s: float
    ) -> None:
        """Write the row of a logged step. Times are means over the steps since the last one, of rank 0.

        Args:
            epoch: from 1.
            step: optimizer steps made so far.
            loss: rank 0's training loss.
            lr: learning rate.
            data_wait_s: seconds that rank 0 waited for batches since the last logged step.
            communication_wait_s: seconds that it waited for averages since then.
        """
        if not self._main:
            return
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
        self._display.show_step(row)
        if self._wandb is not None:
            self._wandb.log({f"step/{key}": value for key, value in row.items()}, step=step)

    def end_epoch(self, row: Mapping[str, float]) -> None:
        """Write the row of an epoch, and bring ``summary.json`` up to date."""
        if not self._main:
            return
        with self._though_disk_is_full("metrics.csv"):
            self._writer.writerow(row)
        if "val_acc1" in row:
            self._best_acc1 = max(row["val_acc1"], self._best_acc1 or 0.0)
        summary = dict(row) | {"best_acc1": self._best_acc1, "status": "running"}
        with self._though_disk_is_full("summary.json"):
            rundir.write_summary(self._run_dir, summary)
        self._display.show_epoch(row)
        log.info("epoch %d/%d %s", row["epoch"], self._epochs, json.dumps(dict(row)))
        if self._wandb is not None:
            self._wandb.log(dict(row), step=int(row["step"]))
        # An evaluation is no part of the next step's time.
        self._last_log = time.perf_counter(), int(row["step"])


def rewind_metrics(path: Path, done_steps: int) -> float | None:
    """Keep the header and the rows up to a step; begin the file where there is none.

    Returns:
        The best top-1 accuracy of the rows that stay, in percent.
    """
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    rows = [row for row in csv.DictReader(lines) if row["step"] and int(row["step"]) <= done_steps]
    text = StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
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


class LineDisplay:
    """One plain line for each epoch: for logs, pipes and batch jobs."""

    def __init__(self, config: RunConfig) -> None:
        self._epochs = config.epochs

    def start(self) -> None:
        """Nothing to show yet."""

    def stop(self) -> None:
        """Nothing to put away."""

    def advance(self) -> None:
        """A step is not worth a line."""

    def show_step(self, row: Mapping[str, float]) -> None:
        """A logged step is in ``steps.jsonl``."""

    def show_epoch(self, row: Mapping[str, float]) -> None:
        """Print one line."""
        print(describe_epoch(row, self._epochs), flush=True)


class BarDisplay:
    """A progress bar with loss, images per second and time left, and a line for each epoch above it."""

    def __init__(self, config: RunConfig, num_steps: int, done_steps: int) -> None:
        self._epochs = config.epochs
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(),
            refresh_per_second=4,
        )
        self._task = self._progress.add_task("steps", total=num_steps, completed=done_steps, status="")

    def start(self) -> None:
        """Show the bar."""
        self._progress.start()

    def stop(self) -> None:
        """Take the bar away."""
        self._progress.stop()

    def advance(self) -> None:
        """Move the bar by a step; it is drawn by a thread of its own."""
        self._progress.advance(self._task)

    def show_step(self, row: Mapping[str, float]) -> None:
        """Renew the loss and the speed beside the bar."""
        self._progress.update(self._task, status=f"loss {row['loss']:.3f}, {row['images_per_s']:,.0f} images/s")

    def show_epoch(self, row: Mapping[str, float]) -> None:
        """Print one line above the bar."""
        self._progress.console.print(describe_epoch(row, self._epochs), highlight=False)


def _display(config: RunConfig, steps_per_epoch: int, done_steps: int) -> LineDisplay | BarDisplay:
    planned = config.epochs * steps_per_epoch
    if config.tracking.progress and sys.stdout.isatty():
        return BarDisplay(config, min(planned, config.max_steps or planned), done_steps)
    return LineDisplay(config)


def describe_epoch(row: Mapping[str, float], epochs: int) -> str:
    """One line about an epoch."""
    parts = [f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}", f"train_loss {row['train_loss']:.4f}"]
    if "val_acc1" in row:
        parts += [f"val_loss {row['val_loss']:.4f}", f"val_acc1 {row['val_acc1']:.2f} %"]
        parts += [f"distance {row['consensus_distance']:.3g}"]
    parts += [f"{row['images_per_s']:,.0f} images/s", f"{row['train_time_s']:.1f} s"]
    return "  ".join(parts)


def start_wandb(tracking: TrackingConfig, config: dict[str, Any], run_dir: Path, name: str) -> Any:
    """A run of Weights & Biases, or None where ``tracking.wandb=disabled``.

    ``auto`` is online where this user is logged in. Its files go to ``<run_dir>/wandb``; ``wandb sync`` sends an
    offline run later. The API key stays where wandb keeps it.

    Raises:
        ModuleNotFoundError: wandb is not installed.
    """
    if tracking.wandb is WandbMode.disabled:
        return None
    import wandb

    online = tracking.wandb is WandbMode.online or (
        tracking.wandb is WandbMode.auto and wandb.login(prompt=False)  # type: ignore[call-arg]
    )
    # One run there for all processes that work on the run here, one after the other.
    known = rundir.read_json(run_dir / "run.json").get("wandb_id")
    started = wandb.init(
        id=known,
        resume="allow",
        project=tracking.project,
        entity=tracking.entity,
        name=name,
        dir=run_dir,
        mode="online" if online else "offline",
        config=json.loads(json.dumps(config, default=lambda value: value.value)),
    )
    rundir.write_run(run_dir, wandb_id=started.id)
    return started
