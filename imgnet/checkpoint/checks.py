"""What can be said against how a run is kept, and against where it is to go on from. Reads no tensor."""

from collections.abc import Iterator
from pathlib import Path

from imgnet.checkpoint.manifest import (
    DamagedError,
    Manifest,
    check_size,
    checkpoints_at,
    differences,
    read_manifest,
    refusal,
)
from imgnet.config import RunConfig


def problems(config: RunConfig, world_size: int, workers_per_node: int) -> Iterator[str]:
    """Why ``resume=<path>`` cannot be done, in one line.

    Args:
        config: the run.
        world_size: workers of the run.
        workers_per_node: those of one node.
    """
    if config.resume in ("auto", "none"):
        return
    try:
        manifest = _first_whole(Path(config.resume))
    except OSError as error:
        yield f"resume={config.resume}: {error.strerror}"
    except DamagedError as damage:
        yield f"resume={config.resume}: {damage}"
    else:
        different = differences(manifest, config, world_size, workers_per_node)
        if different and not config.checkpoint.allow_differences:
            yield refusal(f"resume={config.resume}", different)
        elif different:
            yield from _misfits(config, manifest)


def _misfits(config: RunConfig, manifest: Manifest) -> Iterator[str]:
    """What no permission makes fit: the averaged model of another architecture."""
    for key, wanted in (("model.name", config.model.name), ("data.num_classes", config.data.num_classes)):
        found = manifest.trained.get(key, wanted)
        if found != wanted:
            yield f"resume={config.resume} holds a model of {key}={found}, which does not fit {key}={wanted}"


def _first_whole(path: Path) -> Manifest:
    """Of the newest checkpoint that has all of its files; their contents are checked by the workers."""
    if not path.is_dir():
        raise DamagedError("neither auto, none, nor the folder of a checkpoint or a run")
    damages = []
    for folder in checkpoints_at(path):
        try:
            manifest = read_manifest(folder)
            for rank in range(manifest.world_size):
                check_size(folder, rank)
        except DamagedError as damage:
            damages.append(str(damage))
        else:
            return manifest
    raise DamagedError("; ".join(["there is no whole checkpoint in that folder", *damages[:1]]))
