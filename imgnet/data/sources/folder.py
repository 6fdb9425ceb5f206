"""Images in ImageNet's layout: ``<root>/train/<class>/*`` and ``<root>/val/<class>/*``.

Labels are the places of the class names in sorted order, as in torchvision's ImageFolder.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from imgnet.config import ConfigError
from imgnet.data.sampling.counter import Ints
from imgnet.data.sources.header import JpegHeader, read_header

Split: TypeAlias = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")
EXTENSIONS = (".jpeg", ".jpg", ".png", ".webp")
LAYOUT_HINT = "it must hold train/<class>/* and val/<class>/*, as ImageNet has them"

_NUM_SCANS_AT_ONCE = 16  # a listing waits for the disk or the network, not for a core
_NUM_NAMES_SHOWN = 3


def layout_problems(root: Path, num_classes: int) -> list[str]:
    """What is wrong with the folder as far as the names of its classes tell; one line each."""
    if not root.is_dir():
        return [f"data.root={root} is not a folder; {LAYOUT_HINT}. Set data.root=<path>"]
    missing = [split for split in SPLITS if not (root / split).is_dir()]
    if missing:
        return [f"data.root={root} has no folder {split}/; {LAYOUT_HINT}" for split in missing]
    train, val = (class_names(root / split) for split in SPLITS)
    problems = [
        f"{root / split} has {len(names)} class folders, but data.num_classes={num_classes}"
        for split, names in zip(SPLITS, (train, val), strict=True)
        if len(names) != num_classes
    ]
    for here, there, names in (("train", "val", set(train) - set(val)), ("val", "train", set(val) - set(train))):
        if names:
            problems.append(f"data.root={root} has {len(names)} classes in {here}/ but not in {there}/: {_some(names)}")
    return problems


def class_names(split_folder: Path) -> list[str]:
    """Names of the class folders, sorted. Hidden ones, which editors and archivers leave behind, are no classes."""
    with os.scandir(split_folder) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())


def classes_without_images(split_folder: Path) -> list[str]:
    """Names of the class folders in which there is no image. Each is read up to its first one."""
    names = class_names(split_folder)
    with ThreadPoolExecutor(_NUM_SCANS_AT_ONCE) as pool:
        first = pool.map(lambda name: next(_image_names(f"{split_folder}/{name}"), None), names)
        return [name for name, image in zip(names, first, strict=True) if image is None]


def num_images_up_to(split_folder: Path, limit: int) -> int:
    """How many images a split has, counted no further than ``limit``."""
    images = (image for name in class_names(split_folder) for image in _image_names(f"{split_folder}/{name}"))
    return sum(1 for _ in islice(images, limit))


class FolderSource:
    """The images of one split of a folder. A :class:`~imgnet.data.sources.source.Source`.

    File names are held as one string of bytes with offsets: 1.28 million Python strings would take about 100 MB in
    every worker of a node.
    """

    def __init__(self, root: Path, split: Split, num_classes: int) -> None:
        """Lists the files. Raises ConfigError with a line for each thing that is wrong with the folder."""
        problems = layout_problems(root, num_classes)
        if problems:
            raise ConfigError(problems)
        self._folder = str(root / split)
        self._classes = class_names(root / split)
        files = _files_of_classes(self._folder, self._classes)
        names = [os.fsencode(name) for files_of_class in files for name in files_of_class]
        self._names = b"".join(names)
        self._ends = np.cumsum([0, *map(len, names)], dtype=np.int64)
        self._labels = np.repeat(
            np.arange(len(files), dtype=np.int64), [len(files_of_class) for files_of_class in files]
        )

    @property
    def labels(self) -> Ints:
        """The class of each image: int64 ``[len(self)]``, the place of its folder in sorted order."""
        return self._labels

    @property
    def pixels(self) -> None:
        """Files hold encoded images."""
        return None

    def __len__(self) -> int:
        return len(self._labels)

    def expect(self, indices: Ints) -> None:
        """Nothing: to tell it the files would have to be opened, which waits for the disk too."""

    def read(self, index: int) -> bytes:
        """The bytes of the file."""
        with open(self.describe(index), "rb", buffering=0) as file:  # noqa: PTH123  (a third of the time that Path takes)
            return file.read()

    def header(self, index: int, data: bytes) -> JpegHeader | None:
        """Read from the bytes each time, which costs less than the memory to keep it."""
        return read_header(data)

    def describe(self, index: int) -> str:
        """The path of the file."""
        name = os.fsdecode(self._names[self._ends[index] : self._ends[index + 1]])
        return f"{self._folder}/{self._classes[self._labels[index]]}/{name}"


def _files_of_classes(folder: str, classes: list[str]) -> list[list[str]]:
    """Sorted file names of each class. Raises ConfigError where a class has none."""
    with ThreadPoolExecutor(_NUM_SCANS_AT_ONCE) as pool:
        files = list(pool.map(lambda name: sorted(_image_names(f"{folder}/{name}")), classes))
    empty = [name for name, names in zip(classes, files, strict=True) if not names]
    if empty:
        raise ConfigError([without_images(folder, empty)])
    return files


def without_images(split_folder: Path | str, classes: list[str]) -> str:
    """A line about classes that have none."""
    kinds = ", ".join(EXTENSIONS)
    return f"{split_folder} has {len(classes)} classes without an image ({kinds}): {_some(classes)}"


def _image_names(folder: str) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name.lower().endswith(EXTENSIONS) and not name.startswith(".") and entry.is_file():
                yield name


def _some(names: list[str] | set[str]) -> str:
    shown = ", ".join(sorted(names)[:_NUM_NAMES_SHOWN])
    return f"{shown}, ..." if len(names) > _NUM_NAMES_SHOWN else shown
