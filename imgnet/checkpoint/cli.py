"""``imgnet checkpoint``: look into checkpoints, and make a model of one."""

from pathlib import Path
from typing import Annotated

import typer

from imgnet.checkpoint.manifest import DamagedError, Manifest, checkpoints_at, read_manifest
from imgnet.refuse import refuse

app = typer.Typer(no_args_is_help=True, help="Look into the checkpoints of a run, and make a model of one.")

At = Annotated[Path, typer.Argument(help="A run directory, or one checkpoint in its folder checkpoints/.")]


@app.command()
def show(path: At) -> None:
    """One row for each checkpoint: step, epoch, workers, metrics, size, and whether every file is whole."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for column in ("checkpoint", "step", "epoch", "workers", "top-1 %", "size", "state"):
        table.add_column(column, justify="left" if column in ("checkpoint", "state") else "right")
    for folder in _found(path):
        table.add_row(folder.name, *_row(folder))
    console = Console()
    (console if console.is_terminal else Console(width=160)).print(table)


def _found(path: Path) -> list[Path]:
    folders = checkpoints_at(path)
    if not folders:
        refuse(f"{path}: no whole checkpoint there; they are in checkpoints/ of a run directory")
    return folders


def _row(folder: Path) -> list[str]:
    size = f"{sum(file.stat().st_size for file in folder.iterdir()) / 1e6:,.1f} MB"
    try:
        manifest = read_manifest(folder)
        _check_all(folder, manifest)
    except DamagedError as damage:
        return ["-", "-", "-", "-", size, str(damage)]
    accuracy = manifest.metrics.get("val_acc1")
    scored = "-" if accuracy is None else f"{accuracy:.2f}"
    return [str(manifest.step), str(manifest.epoch), str(manifest.world_size), scored, size, "complete"]


def _check_all(folder: Path, manifest: Manifest) -> None:
    from imgnet.checkpoint.folder import check_worker

    for rank in range(manifest.world_size):
        check_worker(folder, rank)


@app.command()
def average(
    path: At,
    out: Annotated[Path, typer.Option("--out", "-o", help="The model, a .safetensors file.")] = Path(
        "model.safetensors"
    ),
) -> None:
    """Write the mean of all workers' models as a state_dict that plain torchvision or timm loads.

    Of a run directory the newest checkpoint is taken.
    """
    from safetensors import SafetensorError

    from imgnet.checkpoint.export import export_tensors
    from imgnet.checkpoint.folder import read_average

    folder = _found(path)[0]
    try:
        manifest = read_manifest(folder)
        _check_all(folder, manifest)
        model = read_average(folder, manifest.world_size)
    except DamagedError as damage:
        refuse(str(damage))
    about = {"settings": manifest.trained, "epoch": manifest.epoch, "step": manifest.step} | manifest.metrics
    if manifest.preprocessing:
        about["preprocessing"] = manifest.preprocessing
    try:
        export_tensors(out, model, about)
    except (OSError, SafetensorError) as error:
        refuse(f"{out}: {error}")
    typer.echo(f"written: {out}, the mean of {manifest.world_size} workers at step {manifest.step}")
