"""Scikit-learn's 1,797 handwritten digits as JPEG files in ImageNet's layout: real images that need no download.

The split is fixed: with the digits sorted by class, in scikit-learn's order within each, every fifth is for validation.
That gives 1,437 training and 360 validation images, and each class its fifth to within one image. The same persons
wrote both parts, so that accuracies are those of known hands.
"""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

NUM_TRAIN = 1437
NUM_VAL = 360
NUM_CLASSES = 10
SIDE_PX = 32

_VAL_EVERY = 5
_MAX_INK = 16  # scikit-learn's images are 8 x 8 with values from 0 to 16
_JPEG_QUALITY = 95


def ensure_digits(root: Path) -> None:
    """Write the digits to ``root`` unless it is there. Any number of processes may call this at once.

    The files are written beside ``root`` and renamed, so that ``root`` is complete if it exists at all.
    """
    if root.is_dir():
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        _write(unfinished / "digits")
        _rename(unfinished / "digits", root)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def validation_mask(labels: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Which of the digits are for validation: bool ``[num_digits]``, from their classes in scikit-learn's order."""
    by_class = np.argsort(labels, kind="stable")
    mask = np.zeros(len(by_class), dtype=bool)
    mask[by_class[::_VAL_EVERY]] = True
    return mask


def _write(folder: Path) -> None:
    # Imported here, because every later run finds the files and needs neither.
    from PIL import Image
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    inks = np.rint(pixels.reshape(-1, 8, 8) * (255 / _MAX_INK)).astype(np.uint8)
    in_val = validation_mask(labels)
    for split in ("train", "val"):
        for label in range(NUM_CLASSES):
            (folder / split / str(label)).mkdir(parents=True)
    for number, (ink, label) in enumerate(zip(inks, labels, strict=True)):
        path = folder / ("val" if in_val[number] else "train") / str(label) / f"{number:04d}.jpeg"
        Image.fromarray(ink).resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC).save(path, quality=_JPEG_QUALITY)


def _rename(finished: Path, root: Path) -> None:
    try:
        finished.rename(root)
    except OSError:
        # A folder with files in it is never replaced: another process was faster, and its folder is as complete.
        if not root.is_dir():
            raise
