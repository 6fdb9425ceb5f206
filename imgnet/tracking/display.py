"""A line for each epoch, or a bar, in the terminal that a run was started from."""

import sys
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from imgnet.config import RunConfig


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


def build_display(config: RunConfig, steps_per_epoch: int, done_steps: int) -> LineDisplay | BarDisplay:
    """A bar where somebody watches, else lines."""
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
