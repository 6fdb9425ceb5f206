"""JPEGs with the sizes and weights of ImageNet's, drawn from numbers: for benchmarks and tests without ImageNet."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from imgnet.data.sources.folder import SPLITS, Split
from imgnet.data.tools.pool import in_processes

QUALITY = 95
VAL_SHARE = 10  # one validation image for so many training images
_GRIDS = (3, 8, 24, 64)  # cells along an image: from the colour of the scene to fine structure
_GRAIN = 12.0  # standard deviation of the noise, which brings 500 x 375 pixels to about 110 KB
_CONTRAST = 60.0
_COMMON_SEED = 2
_SPLIT_SEEDS: dict[Split, int] = {"train": 0, "val": 1}


def synthesize(
    folder: Path, *, num_classes: int, per_class: int, width: int, height: int, likeness: float, num_workers: int
) -> Iterator[int]:
    """Write ``train`` and ``val`` in ImageNet's layout, and yield the number of images after each class.

    The same numbers give the same files. A class that is whole is not drawn again, so that a command which was killed
    goes on where it was.

    Args:
        folder: where to.
        num_classes: 2 or more.
        per_class: training images of each.
        width: pixels.
        height: pixels.
        likeness: how much of its patches an image has in common with all others of its class, in [0, 1]; with 0 the
            classes cannot be learned.
        num_workers: processes.
    """
    num_val = max(1, per_class // VAL_SHARE)
    counts: dict[Split, int] = {"train": per_class, "val": num_val}
    jobs: list[tuple[Split, int, int]] = [
        (split, label, counts[split]) for split in SPLITS for label in range(num_classes)
    ]
    draw = partial(_draw_class, folder, width, height, likeness)
    yield from in_processes(draw, jobs, num_workers)


def num_images(num_classes: int, per_class: int) -> int:
    """How many images :func:`synthesize` draws."""
    return num_classes * (per_class + max(1, per_class // VAL_SHARE))


def picture(
    seed: tuple[int, ...], width: int, height: int, common: tuple[int, ...] = (), likeness: float = 0.0
) -> Image.Image:
    """Patches of colour at four scales under grain.

    Args:
        seed: of the picture.
        width: pixels.
        height: pixels.
        common: the seed of patches that other pictures have, too.
        likeness: their weight, from 0 to 1; that of the picture's own leaves their variance as it is.
    """
    generator, of_all = np.random.default_rng(seed), np.random.default_rng(common)
    pixels = np.full((height, width, 3), 128.0, dtype=np.float32)
    for cells in _GRIDS:
        size = max(2, cells * width // 500), max(2, cells * height // 500)
        for color in range(3):
            values = generator.normal(size=size[::-1])
            if likeness:
                values = np.sqrt(1 - likeness**2) * values + likeness * of_all.normal(size=size[::-1])
            patches = Image.fromarray(values.astype(np.float32))
            smooth = np.asarray(patches.resize((width, height), Image.Resampling.BICUBIC))
            pixels[:, :, color] += _CONTRAST / np.sqrt(cells) * smooth
    pixels += _GRAIN * generator.standard_normal((height, width, 1), dtype=np.float32)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _draw_class(folder: Path, width: int, height: int, likeness: float, job: tuple[Split, int, int]) -> int:
    split, label, num = job
    name = f"n{label:08d}"
    finished = folder / split / name
    if finished.is_dir():
        return num
    unfinished = folder / split / f".{name}"
    unfinished.mkdir(parents=True, exist_ok=True)
    for number in range(num):
        image = picture((_SPLIT_SEEDS[split], label, number), width, height, (_COMMON_SEED, label), likeness)
        image.save(unfinished / f"{name}_{number}.JPEG", quality=QUALITY)
    unfinished.rename(finished)
    return num
