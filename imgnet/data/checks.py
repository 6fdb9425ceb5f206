"""What can be said about the data before anything is queued or started."""

import os
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from imgnet.config import DataBackend, DataConfig, DataKind, Interpolation
from imgnet.config.ranges import shown, wrong_values
from imgnet.data.sources import digits
from imgnet.data.sources.folder import (
    LAYOUT_HINT,
    SPLITS,
    classes_without_images,
    layout_problems,
    num_images_up_to,
    without_images,
)
from imgnet.data.sources.shards import MANIFEST, SHARDS_HINT, read_manifest, shard_problems
from imgnet.runtime import expand

_HINTS = {
    DataKind.folder: LAYOUT_HINT,
    DataKind.shards: SHARDS_HINT,
    DataKind.digits: "the digits are written there once, such as data.root=data/digits",
}


def problems(config: DataConfig, *, on_this_machine: bool = False) -> list[str]:
    """Everything that is wrong, one line each with the key, its value and what would be right. Reads no image.

    Args:
        config: each of its values in its range already.
        on_this_machine: whether the run's workers will be here, so that what is known of its disks counts.
    """
    found = [
        *preprocessing_problems(config),
        *_decoder_problems(config),
        *_staging_problems(config, on_this_machine),
    ]
    try:
        return [*found, *_place_problems(config, on_this_machine)]
    except OSError as error:
        return [*found, f"data.root={config.root}: {error.strerror}"]


def preprocessing_problems(config: DataConfig) -> list[str]:
    """Those of how images are cut, resized and normalised. Looks at no disk."""
    return [*wrong_values(config, "data").values()] or [*_cut_problems(config)]


def batch_problems(config: DataConfig, global_batch_size: int) -> Iterator[str]:
    """A batch of more images than there are. Nothing of data that are refused anyway."""
    num_train = _num_train_up_to(config, global_batch_size)
    if num_train is not None and num_train < global_batch_size:
        key = f"global_batch_size={global_batch_size}"
        yield f"{key} is more than the {num_train} training images of data={config.name}"


def known_num_train(config: DataConfig) -> int | None:
    """How many training images there will be, as far as the configuration tells."""
    return digits.NUM_TRAIN if config.kind is DataKind.digits else config.num_train


def chosen_backend(config: DataConfig) -> DataBackend:
    """Who decodes, with ``auto`` resolved."""
    if config.backend is not DataBackend.auto:
        return config.backend
    return DataBackend.dali if dali_is_installed() else DataBackend.torchvision


def dali_is_installed() -> bool:
    """Whether DALI can be imported, found out without importing it."""
    try:
        return find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:  # nothing of NVIDIA's is installed
        return False


def _num_train_up_to(config: DataConfig, limit: int) -> int | None:
    """How many training images there are, counted no further than ``limit``; None where there is no telling."""
    known = known_num_train(config)
    if known is not None or problems(config):
        return known
    root = _root(config)
    if config.kind is DataKind.shards:
        return read_manifest(root).splits["train"].num_samples
    return num_images_up_to(root / "train", limit)


def _cut_problems(config: DataConfig) -> Iterator[str]:
    if config.eval_px > config.eval_resize_px:
        yield (
            f"data.eval_px={config.eval_px} must not exceed data.eval_resize_px={config.eval_resize_px}, "
            "the shorter side of the image that it is cut from"
        )
    for key in ("crop_scale", "crop_ratio"):
        smallest, largest = getattr(config, key)
        if smallest > largest:
            yield f"data.{key}={shown([smallest, largest])} must be the smallest, then the largest"
    if config.interpolation is not Interpolation.bilinear and not config.antialias:
        yield (
            "data.antialias=false is for data.interpolation=bilinear; what it means with "
            f"{config.interpolation.name} differs between libraries"
        )


def _decoder_problems(config: DataConfig) -> Iterator[str]:
    if config.backend is DataBackend.dali and not dali_is_installed():
        yield "data.backend=dali, but DALI is not installed: pip install 'imgnet[dali]', or set data.backend=auto"
    if config.kind is DataKind.synthetic and config.backend is not DataBackend.auto:
        yield f"data.backend={config.backend.name} decodes images, and data.kind=synthetic has none; leave it out"


def _staging_problems(config: DataConfig, on_this_machine: bool) -> Iterator[str]:
    if config.stage_to is None:
        return
    if config.kind is not DataKind.shards:
        yield f"data.stage_to copies shards, and data.kind={config.kind.name} has none; {SHARDS_HINT}"
    if not config.stage_to.startswith(("/", "~", "$")):
        yield f"data.stage_to={config.stage_to} must be an absolute path, or begin with a variable such as $TMPDIR"
    elif on_this_machine:
        try:
            expand(config.stage_to)
        except ValueError as error:
            yield f"data.stage_to={config.stage_to}: {error}"


def _place_problems(config: DataConfig, on_this_machine: bool) -> Iterator[str]:
    yield from _count_problems(config)
    if config.kind is DataKind.synthetic:
        return
    root = _root(config)
    if config.root is None:
        yield f"data.root is not set, but data.kind={config.kind.name} needs a folder; {_HINTS[config.kind]}"
    elif config.kind is DataKind.folder:
        yield from _folder_problems(root, config.num_classes)
    elif config.kind is DataKind.shards:
        yield from _shard_problems(root, config.num_classes)
    else:
        yield from _digits_problems(root, config.num_classes, on_this_machine)


def _root(config: DataConfig) -> Path:
    return Path(config.root or "").expanduser()


def _count_problems(config: DataConfig) -> Iterator[str]:
    for key in ("num_train", "num_val"):
        count = getattr(config, key)
        if config.kind is not DataKind.synthetic and count is not None:
            kind = config.kind.name
            yield f"data.{key}={count} is for data.kind=synthetic only; data.kind={kind} counts its files"
        elif config.kind is DataKind.synthetic and count is None:
            yield f"data.{key}=null must be a number: data.kind=synthetic has as many images as it is told"


@cache  # asked for every run of a sweep, and thousands of folders are read
def _folder_problems(root: Path, num_classes: int) -> list[str]:
    if (root / MANIFEST).is_file():
        return [f"data.root={root} holds shards: set data.kind=shards"]
    found = layout_problems(root, num_classes)
    if found:
        return found
    empty = {split: classes_without_images(root / split) for split in SPLITS}
    return [without_images(root / split, classes) for split, classes in empty.items() if classes]


@cache
def _shard_problems(root: Path, num_classes: int) -> list[str]:
    found = shard_problems(root, num_classes)
    if found:
        return found
    splits = read_manifest(root).splits
    return [f"data.root={root} has no images in {split}" for split in SPLITS if splits[split].num_samples < 1]


def _digits_problems(root: Path, num_classes: int, on_this_machine: bool) -> Iterator[str]:
    if num_classes != digits.NUM_CLASSES:
        yield f"data.num_classes={num_classes} must be {digits.NUM_CLASSES} with data.kind=digits"
    elif root.exists():
        if layout_problems(root, num_classes):
            yield f"data.root={root} exists and does not hold the digits: remove it, or name a new folder"
    elif on_this_machine:
        above = next(folder for folder in root.absolute().parents if folder.exists())
        if not above.is_dir() or not os.access(above, os.W_OK):
            yield f"data.root={root} cannot be made: {above} is no folder that you may write to"
