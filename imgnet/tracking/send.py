"""``imgnet sync``: what offline runs kept, sent to Weights & Biases."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from imgnet import rundir
from imgnet.tracking.wandb_file import pieces


class Parcel(NamedTuple):
    """What there is to send of a run.

    Attributes:
        run_dir: whose.
        pieces: folders that wandb wrote and has not sent, the oldest first.
        is_written: the run still goes on, so that its newest piece is left for later.
    """

    run_dir: Path
    pieces: list[Path]
    is_written: bool


def parcels(path: Path) -> Iterator[Parcel]:
    """Of each run at ``path`` or below, the oldest sweep first."""
    for run_dir in rundir.find(path):
        found = pieces(run_dir)
        is_written = rundir.read_json(run_dir / "run.json").get("status") == "running"
        left = [piece for piece in (found[:-1] if is_written else found) if not _is_sent(piece)]
        if found:
            yield Parcel(run_dir, left, is_written)


def _is_sent(piece: Path) -> bool:
    return not piece.name.startswith("offline-") or any(piece.glob("*.wandb.synced"))


def send(parcel: Parcel) -> bool:
    """Send the pieces of a run, in their order, through wandb's own command.

    Returns:
        Whether all of them arrived.
    """
    return subprocess.run(command_for(parcel), check=False).returncode == 0


def command_for(parcel: Parcel) -> list[str]:
    """Wandb sends the pieces of one run in the order in which they began."""
    return [sys.executable, "-m", "wandb", "sync", *map(str, parcel.pieces)]
