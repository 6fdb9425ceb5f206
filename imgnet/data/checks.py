"""What can be said about the data before anything is queued or started."""

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from math import isfinite
from pathlib import Path

from imgnet.config import DataBackend, DataConfig, DataKind, Interpolation
from imgnet.data import digits
from imgnet.data.folder import LAYOUT_HINT, layout_problems
from imgnet.data.shards import MANIFEST, SHARDS_HINT, shard_problems

MOST_CROP_ATTEMPTS = 1000  # all of them are drawn for every image
_HINTS = {
    DataKind.folder: LAYOUT_HINT,
    DataKind.shards: SHARDS_HINT,
    DataKind.digits: "the digits are written there once, such as data.root=data/digits",
}


def problems(config: DataConfig) -> list[str]:
    """Everything that is wrong, one line each with the key, its value and what would be right. Reads no image."""
    return [
        *preprocessing_problems(config),
        *_decoder_problems(config),
        *_staging_problems(config),
        *_place_problems(config),
    ]


def preprocessing_problems(config: DataConfig) -> list[str]:
    """Those of how images are cut, resized and normalised. Looks at no disk."""
    return [*_size_problems(config), *_range_problems(config), *_color_problems(config)]


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


def known_num_train(config: DataConfig) -> int | None:
    """How many training images there will be; None where only listing the folder tells."""
    match config.kind:
        case DataKind.digits:
            return digits.NUM_TRAIN
        case DataKind.synthetic:
            return config.num_train
        case DataKind.folder | DataKind.shards:
            return None


def _size_problems(config: DataConfig) -> Iterator[str]:
    for key in ("train_px", "eval_px", "eval_resize_px"):
        if getattr(config, key) < 1:
            yield f"data.{key}={getattr(config, key)} must be 1 or more pixels"
    if config.eval_px > config.eval_resize_px:
        yield (
            f"data.eval_px={config.eval_px} must not exceed data.eval_resize_px={config.eval_resize_px}, "
            "the shorter side of the image that it is cut from"
        )
    if config.interpolation is not Interpolation.bilinear and not config.antialias:
        yield (
            "data.antialias=false is for data.interpolation=bilinear; what it means with "
            f"{config.interpolation.name} differs between libraries"
        )
    if config.num_classes < 2:
        yield f"data.num_classes={config.num_classes} must be 2 or more"
    if config.num_workers is not None and config.num_workers < 0:
        yield f"data.num_workers={config.num_workers} must be 0 (decode in the training process) or more, or null"


def _range_problems(config: DataConfig) -> Iterator[str]:
    scale, ratio = config.crop_scale, config.crop_ratio
    if not (len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1):
        yield f"data.crop_scale={_shown(scale)} must be two shares of the area, 0 < smallest <= largest <= 1"
    if not (len(ratio) == 2 and 0 < ratio[0] <= ratio[1] and isfinite(ratio[1])):
        yield f"data.crop_ratio={_shown(ratio)} must be two ratios of width to height, 0 < smallest <= largest"
    if not 1 <= config.crop_attempts <= MOST_CROP_ATTEMPTS:
        yield f"data.crop_attempts={config.crop_attempts} must be from 1 to {MOST_CROP_ATTEMPTS}"
    if not 0 <= config.flip_probability <= 1:
        yield f"data.flip_probability={config.flip_probability} must be from 0 to 1"


def _color_problems(config: DataConfig) -> Iterator[str]:
    if not (len(config.mean) == 3 and all(map(isfinite, config.mean))):
        yield f"data.mean={_shown(config.mean)} must be three numbers: red, green, blue"
    if not (len(config.std) == 3 and all(isfinite(std) and std > 0 for std in config.std)):
        yield f"data.std={_shown(config.std)} must be three numbers above 0: red, green, blue"


def _decoder_problems(config: DataConfig) -> Iterator[str]:
    if config.backend is DataBackend.dali and not dali_is_installed():
        yield "data.backend=dali, but DALI is not installed: pip install 'imgnet[dali]', or set data.backend=auto"
    if config.kind is DataKind.synthetic and config.backend is not DataBackend.auto:
        yield f"data.backend={config.backend.name} decodes images, and data.kind=synthetic has none; leave it out"
    if config.max_bad_images < 0:
        yield f"data.max_bad_images={config.max_bad_images} must be 0 or more"


def _staging_problems(config: DataConfig) -> Iterator[str]:
    if config.stage_timeout_min < 1:
        yield f"data.stage_timeout_min={config.stage_timeout_min} must be 1 or more minutes"
    if config.stage_to is None:
        return
    if config.kind is not DataKind.shards:
        yield f"data.stage_to copies shards, and data.kind={config.kind.name} has none; {SHARDS_HINT}"
    if not config.stage_to.startswith(("/", "~", "$")):
        yield f"data.stage_to={config.stage_to} must be an absolute path, or begin with a variable such as $TMPDIR"


def _place_problems(config: DataConfig) -> Iterator[str]:
    if config.kind is DataKind.synthetic:
        yield from _count_problems(config)
        return
    kind = config.kind.name
    for key in ("num_train", "num_val"):
        count = getattr(config, key)
        if count is not None:
            yield f"data.{key}={count} is for data.kind=synthetic only; data.kind={kind} counts its files"
    if config.root is None:
        yield f"data.root is not set, but data.kind={kind} needs a folder; {_HINTS[config.kind]}"
    elif config.kind is DataKind.folder:
        root = Path(config.root).expanduser()
        if (root / MANIFEST).is_file():
            yield f"data.root={root} holds shards: set data.kind=shards"
        else:
            yield from layout_problems(root, config.num_classes)
    elif config.kind is DataKind.shards:
        yield from shard_problems(Path(config.root).expanduser(), config.num_classes)
    else:
        yield from _digits_problems(Path(config.root).expanduser(), config.num_classes)


def _count_problems(config: DataConfig) -> Iterator[str]:
    for key in ("num_train", "num_val"):
        count = getattr(config, key)
        if count is None or count < 1:
            shown = "null" if count is None else count
            yield f"data.{key}={shown} must be 1 or more: data.kind=synthetic has as many images as it is told"


def _digits_problems(root: Path, num_classes: int) -> Iterator[str]:
    if num_classes != digits.NUM_CLASSES:
        yield f"data.num_classes={num_classes} must be {digits.NUM_CLASSES} with data.kind=digits"
    elif root.exists() and layout_problems(root, num_classes):
        yield f"data.root={root} exists and does not hold the digits: remove it, or name a new folder"


def _shown(numbers: Sequence[float]) -> str:
    return "[" + ",".join(f"{number:g}" for number in numbers) + "]"
