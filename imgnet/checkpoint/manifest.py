"""Checkpoints of a run on disk: one folder for each step, complete or not there. This part reads no tensor.

::

    checkpoints/step_0000000440/rank_0.safetensors    everything that worker 0 needs
                                rank_0.json           its size and checksum
                                ...
                                manifest.json         step, epoch, number of workers, what was trained, metrics

A folder is filled under the name ``.step_0000000440.partial`` and renamed when every worker's file is on disk.
"""

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from imgnet.config import RunConfig
from imgnet.rundir import read_json, write_atomically

FORMAT = 1
MANIFEST = "manifest.json"


class DamagedError(ValueError):
    """A checkpoint that is not what its manifest says. The text names the file and the damage."""


@dataclass(frozen=True)
class Manifest:
    """What a whole checkpoint says of itself.

    Attributes:
        step: optimizer steps made.
        epoch: epochs begun, from 1; the last of them may be half done.
        world_size: number of workers, each with a file.
        trained: the settings that a run must share to go on from here, by their keys.
        metrics: the last row of ``metrics.csv``, where there is one.
        preprocessing: how the images of validation are prepared, by keys of ``data``.
        format: version of this layout.
    """

    step: int
    epoch: int
    world_size: int
    trained: dict[str, Any]
    metrics: dict[str, float]
    preprocessing: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT


def folder_of(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint of a step is, once it is whole."""
    return checkpoints / f"step_{step:010d}"


def partial_of(folder: Path) -> Path:
    """Where it is until then."""
    return folder.with_name(f".{folder.name}.partial")


def complete(partial: Path, folder: Path, manifest: Manifest) -> None:
    """Make a checkpoint whole: add the manifest, then give the folder its name. For one process."""
    write_atomically(partial / MANIFEST, json.dumps(asdict(manifest), indent=2) + "\n")
    if folder.exists():
        shutil.rmtree(folder)  # the same step once more, by a run that was told to start over
    partial.rename(folder)


def steps_of(checkpoints: Path) -> list[Path]:
    """The folders of whole checkpoints, the newest first."""
    return sorted((file.parent for file in checkpoints.glob(f"step_*/{MANIFEST}")), reverse=True)


def remove_partial(checkpoints: Path) -> None:
    """Remove what an ended run was writing."""
    for folder in checkpoints.glob(".step_*.partial"):
        shutil.rmtree(folder)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint.

    Raises:
        DamagedError: there is none, or it is not of this layout.
    """
    try:
        return Manifest(**read_json(folder / MANIFEST))
    except (TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DamagedError(f"{folder}: no checkpoint of this format ({error})") from None


def trained_settings(config: RunConfig) -> dict[str, Any]:
    """The settings that decide what training computes, by their keys; the number of workers stands by itself."""
    values: dict[str, Any] = {
        "model.name": config.model.name,
        "data.name": config.data.name,
        "data.num_classes": config.data.num_classes,
        "data.train_px": config.data.train_px,
        "seed": config.seed,
        "epochs": config.epochs,
        "global_batch_size": config.global_batch_size,
        "num_accumulation_steps": config.num_accumulation_steps,
        "precision": config.precision.value,
        "label_smoothing": config.label_smoothing,
        "max_grad_norm": config.max_grad_norm,
    }
    for group in ("topology", "optimizer"):
        values |= {f"{group}.{key}": value for key, value in asdict(getattr(config, group)).items()}
    return json.loads(json.dumps(values, default=lambda value: value.value))


def differences(manifest: Manifest, config: RunConfig) -> list[str]:
    """How the run that wrote a checkpoint differs from this one, each as ``key=there, not here``."""
    wanted, found = trained_settings(config), manifest.trained
    return [
        f"{key}={found.get(key)}, not {wanted.get(key)}" for key in wanted | found if wanted.get(key) != found.get(key)
    ]


def candidates(config: RunConfig, run_dir: Path) -> list[Path]:
    """Checkpoints that this run may start from, the newest first.

    Its own come before those of ``config.resume``: a run that was interrupted again goes on from where it came.
    """
    own = steps_of(run_dir / "checkpoints")
    if own or config.resume in ("auto", "none"):
        return own
    return checkpoints_at(Path(config.resume))


def checkpoints_at(path: Path) -> list[Path]:
    """The checkpoint at ``path``, or those of the run directory there, the newest first."""
    return [path] if (path / MANIFEST).is_file() else steps_of(path / "checkpoints") or steps_of(path)
