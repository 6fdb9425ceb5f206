"""``imgnet sync``."""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from imgnet.refuse import refuse

app = typer.Typer()


@app.command()
def sync(
    path: Annotated[Path, typer.Argument(help="A run, a sweep, or a folder of sweeps.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be sent, in which order.")] = False,
) -> None:
    """Send to Weights & Biases what offline runs kept: all pieces of each run, the oldest first.

    What was sent already is left out; of a run that goes on the newest piece waits until it is over.
    """
    from imgnet.tracking.send import parcels, send

    if find_spec("wandb") is None:
        refuse("wandb is not installed: pip install 'imgnet[wandb]'")
    found = list(parcels(path))
    if not found:
        refuse(f"{path}: no run here or below that Weights & Biases was told of (tracking.wandb=offline)")
    failed = []
    for parcel in found:
        waits = ", the newest one when the run is over" if parcel.is_written else ""
        typer.echo(f"{parcel.run_dir}: {len(parcel.pieces)} to send{waits}")
        for piece in parcel.pieces if dry_run else []:
            typer.echo(f"  {piece.name}")
        if parcel.pieces and not dry_run and not send(parcel):
            failed.append(parcel.run_dir)
    for run_dir in failed:
        typer.echo(f"{run_dir}: not sent", err=True)
    sys.exit(1 if failed else 0)
