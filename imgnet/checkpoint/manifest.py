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
from imgnet.config.settings import differing, of_the_training
from imgnet.rundir import read_json, write_atomically

FORMAT = 2
"""1: of the settings only some were noted."""
MANIFEST = "manifest.json"
WORKERS_PER_NODE = "workers_per_node"


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
    write_atomically(partial / MANIFEST, json.dumps(asdict(manifest), indent=2) + "\n", durable=True)
    if folder.exists():
        shutil.rmtree(folder)  # the same step once more, by a run that was told to start over
    partial.rename(folder)


def steps_of(checkpoints: Path) -> list[Path]:
    """The folders of whole checkpoints, the newest first."""
    return sorted((file.parent for file in checkpoints.glob(f"step_*/{MANIFEST}")), reverse=True)


def remove_partial(checkpoints: Path, before: int | None = None) -> None:
    """Remove what an ended run was writing, or what was given up of steps ``before`` one that is written now."""
    end = None if before is None else partial_of(folder_of(checkpoints, before))
    for folder in checkpoints.glob(".step_*.partial"):
        if end is None or folder < end:
            shutil.rmtree(folder, ignore_errors=end is not None)  # a worker that comes late may be writing there


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint.

    Raises:
        DamagedError: there is none, or it is not of this layout.
    """
    try:
        manifest = Manifest(**read_json(folder / MANIFEST))
    except (TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DamagedError(f"{folder}: no checkpoint of this format ({error})") from None
    kinds = {name: getattr(manifest, name) for name in ("step", "epoch", "world_size", "format")}
    if not (isinstance(manifest.trained, dict) and all(isinstance(value, int) for value in kinds.values())):
        raise DamagedError(f"{folder}: no checkpoint of this format ({kinds})")
    if manifest.format > FORMAT:
        raise DamagedError(f"{folder}: written by a newer version (format {manifest.format}; this one reads {FORMAT})")
    return manifest


def check_size(folder: Path, rank: int) -> dict[str, int]:
    """Compare the size of one worker's file with what was noted; its bytes are not read.

    Returns:
        What was noted: ``bytes`` and ``crc32``.

    Raises:
        DamagedError: the file is lacking or cut short.
    """
    path = folder / f"rank_{rank}.safetensors"
    try:
        noted = json.loads((folder / f"rank_{rank}.json").read_text(encoding="utf-8"))
        size, wanted = path.stat().st_size, {"bytes": noted["bytes"], "crc32": noted["crc32"]}
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise DamagedError(f"{path} cannot be read: {error}") from None
    if size != wanted["bytes"]:
        raise DamagedError(f"{path} has {size} bytes, not {wanted['bytes']}")
    return wanted


def trained_settings(config: RunConfig, workers_per_node: int) -> dict[str, Any]:
    """The settings that decide what training computes, by their keys; the number of workers stands by itself.

    Args:
        config: the run.
        workers_per_node: of the real nodes. It counts, as simulated nodes do, for topologies that see nodes.
    """
    from imgnet.parallel.schedule import node_size, sees_nodes  # needs numpy, for which `imgnet --help` need not wait

    settings = of_the_training(config)
    if sees_nodes(config.topology):
        settings[WORKERS_PER_NODE] = node_size(config.cluster, workers_per_node)
    return json.loads(json.dumps(settings))


def differences(manifest: Manifest, config: RunConfig, world_size: int, workers_per_node: int) -> list[str]:
    """How the run that wrote a checkpoint differs from this one, each as ``key=there, not here``.

    Not in the number of its workers: a run that has another one goes on in its own way.
    """
    there, here = manifest.trained, trained_settings(config, workers_per_node)
    if manifest.format == 1:
        here = {key: value for key, value in here.items() if key in there}
    if manifest.world_size != world_size:
        there, here = ({key: one[key] for key in one if key != WORKERS_PER_NODE} for one in (there, here))
    pairs = differing(there, here).items()
    return [f"{key}={_typed(found)}, not {_typed(wanted)}" for key, (found, wanted) in pairs]


def refusal(place: Path | str, different: list[str]) -> str:
    """Why a run does not go on from the checkpoint there, and what would be right."""
    return (
        f"{place} is of another run: {'; '.join(different)}. checkpoint.allow_differences=true starts from its "
        "averaged model all the same, at step 0"
    )


def _typed(value: Any) -> str:
    """A value as one types it."""
    return json.dumps(value) if isinstance(value, bool | None) else str(value)


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
