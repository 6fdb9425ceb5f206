"""Images in tar shards, read in place: the WebDataset convention (``key.jpg``, ``key.cls``) beside a binary index.

The images are encoded, or raw pixels (``key.ppm``), as the manifest says for all of them.

A folder of shards holds ``manifest.json``, and for each split ``<split>/shard-000000.tar`` and on and
``<split>/index.npy``. The manifest is written last: where it is, the shards are whole. Checksums are CRC-32, which
finds every accident of up to 32 bits in a row and is as fast as memory; they are no defence against intent.
"""

import json
import os
import sys
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tarfile import TarInfo
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from imgnet.config import ConfigError
from imgnet.data.sampling.counter import Ints
from imgnet.data.sources.folder import SPLITS, Split
from imgnet.data.sources.header import JpegHeader, read_header, read_ppm_header
from imgnet.data.sources.raw import RawPixels
from imgnet.data.tools.tar import UnsafeTarError, contents, open_tar, safe_members

MANIFEST = "manifest.json"
INDEX = "index.npy"
SHARDS_HINT = "write shards with: imgnet data shard <folder of images> <shards> --num-shards N"

Format: TypeAlias = Literal["jpeg", "raw"]
"""What images are kept as: encoded (JPEGs, and the few others that there are), or pixels behind a short header."""

VERSIONS: dict[Format, int] = {"jpeg": 1, "raw": 2}
"""What a manifest says of each. A reader that does not know the number refuses the shards."""

IMAGE_ENDINGS: dict[Format, tuple[str, ...]] = {"jpeg": ("jpg", "jpeg", "png", "webp"), "raw": ("ppm",)}
LABEL_ENDING = "cls"

_NUM_OPEN_FILES = 256  # of the 1,024 that a process usually may have; further shards are opened for each read

ROW = np.dtype(
    [
        ("offset", "<u8"),  # of the image's first byte in its shard
        ("label", "<i8"),
        ("length", "<u4"),
        ("checksum", "<u4"),  # CRC-32 of the image's bytes
        ("width", "<u2"),  # in pixels; 0 where the image is neither raw nor an ordinary JPEG
        ("height", "<u2"),
        ("shard", "<u4"),
    ]
)
"""What the index holds of each image: 32 bytes, so that ImageNet's is 41 MB."""


@dataclass(frozen=True)
class FileRecord:
    """A file of a split as the manifest lists it."""

    name: str
    num_bytes: int
    crc32: int


@dataclass(frozen=True)
class SplitRecord:
    """One split as the manifest lists it."""

    num_samples: int
    index: FileRecord
    shards: list[FileRecord]

    @property
    def files(self) -> list[FileRecord]:
        """All files of the split."""
        return [self.index, *self.shards]


@dataclass(frozen=True)
class Manifest:
    """What a folder of shards consists of."""

    classes: list[str]
    made_with: dict[str, Any]
    splits: dict[str, SplitRecord]
    format: Format = "jpeg"

    def files(self) -> Iterator[tuple[str, FileRecord]]:
        """Every file but the manifest, with its path from the folder."""
        for split, record in self.splits.items():
            for file in record.files:
                yield f"{split}/{file.name}", file

    def write(self, folder: Path) -> None:
        """Declare the shards whole. Atomic."""
        fields = {"format": None} | asdict(self) | {"format": VERSIONS[self.format]}
        write_atomically(folder / MANIFEST, json.dumps(fields, indent=1).encode())


def read_manifest(root: Path) -> Manifest:
    """Raises ConfigError where ``root`` holds no whole shards, in one line."""
    path = root / MANIFEST
    try:
        data = json.loads(path.read_bytes())
        kept_as = _format(path, data["format"])
        splits = {
            split: SplitRecord(
                record["num_samples"],
                FileRecord(**record["index"]),
                [FileRecord(**shard) for shard in _list(record["shards"])],
            )
            for split, record in data["splits"].items()
        }
        manifest = Manifest(_list(data["classes"]), data["made_with"], splits, kept_as)
    except FileNotFoundError:
        raise ConfigError([f"data.root={root} holds no {MANIFEST}, so no whole shards; {SHARDS_HINT}"]) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError([f"{path} cannot be read: {error!r}"]) from None
    for name, _ in manifest.files():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ConfigError([f"{path} is refused: it names a file outside its folder, {name!r}"])
    return manifest


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is no list")
    return value


def _format(path: Path, version: object) -> Format:
    for known, number in VERSIONS.items():
        if version == number:
            return known
    shown = " and ".join(f"{number} ({known})" for known, number in VERSIONS.items())
    raise ConfigError([f"{path} is of format {version!r}; known are {shown}: write the shards again, or update imgnet"])


def shard_problems(root: Path, num_classes: int) -> list[str]:
    """What is wrong with a folder of shards as far as its manifest and the sizes of its files tell; one line each."""
    try:
        manifest = read_manifest(root)
    except ConfigError as error:
        return error.problems
    problems = [f"data.root={root} has no shards of {split}" for split in SPLITS if split not in manifest.splits]
    if len(manifest.classes) != num_classes:
        problems.append(f"{root} has {len(manifest.classes)} classes, but data.num_classes={num_classes}")
    for name, file in manifest.files():
        found = (root / name).stat().st_size if (root / name).is_file() else None
        if found != file.num_bytes:
            shown = "is missing" if found is None else f"has {found} bytes"
            problems.append(f"{root / name} {shown}; the manifest says {file.num_bytes} bytes")
    return problems


class ShardSource:
    """The images of one split of a folder of shards. A :class:`~imgnet.data.sources.source.Source`.

    The index is mapped into memory, so that the processes of a node share one copy of it.
    """

    def __init__(self, root: Path, split: Split, num_classes: int) -> None:
        """Raises ConfigError with a line for each thing that is wrong with the folder."""
        problems = shard_problems(root, num_classes)
        if problems:
            raise ConfigError(problems)
        manifest = read_manifest(root)
        record = manifest.splits[split]
        self._rows = open_index(root / split / INDEX)
        if len(self._rows) != record.num_samples:
            raise ConfigError([f"{root / split / INDEX} has {len(self._rows)} images, not {record.num_samples}"])
        self._folder = root / split
        self._shards = record.shards
        self._files: dict[int, int] = {}
        self._pixels = RawPixels(self._rows, self._first_bytes) if manifest.format == "raw" else None

    @property
    def labels(self) -> Ints:
        """The class of each image: int64 ``[len(self)]``, in mapped memory."""
        return self._rows["label"]

    @property
    def pixels(self) -> RawPixels | None:
        """Where the shards hold raw ones."""
        return self._pixels

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, index: int) -> bytes:
        """The bytes of the image. Safe in threads, and in processes forked at any time."""
        return self._first_bytes(index, int(self._rows[index]["length"]))

    def expect(self, indices: Ints) -> None:
        """The system reads them into its memory meanwhile."""
        if sys.platform != "linux":
            return
        for index in indices.tolist():
            with suppress(OSError):  # which is told when it is read
                shard, offset, length = self._place(index)
                if (file := self._file(shard)) is not None:
                    os.posix_fadvise(file, offset, length, os.POSIX_FADV_WILLNEED)

    def _first_bytes(self, index: int, length: int) -> bytes:
        shard, offset, _ = self._place(index, length)
        file = self._file(shard)
        data = _read_once(self._path(shard), length, offset) if file is None else os.pread(file, length, offset)
        if len(data) != length:
            raise OSError(0, f"the shard ends after {len(data)} of {length} bytes")
        return data

    def _place(self, index: int, length: int | None = None) -> tuple[int, int, int]:
        """Shard, offset, and length if none is given. Raises OSError where the index says what cannot be."""
        row = self._rows[index]
        shard, offset = int(row["shard"]), int(row["offset"])
        length = int(row["length"]) if length is None else length
        if shard >= len(self._shards) or offset + length > self._shards[shard].num_bytes:
            raise OSError(0, f"the index says bytes {offset} to {offset + length} of shard {shard}, which has fewer")
        return shard, offset, length

    def _file(self, shard: int) -> int | None:
        """The open file of a shard; None where no more may be open."""
        file = self._files.get(shard)
        if file is None and len(self._files) < _NUM_OPEN_FILES:
            # Two threads may open it at once; both files stay open, and the process ends with them.
            file = self._files.setdefault(shard, os.open(self._path(shard), os.O_RDONLY | os.O_CLOEXEC))
        return file

    def header(self, index: int, data: bytes) -> JpegHeader | None:
        """From the index, which was told by the same bytes."""
        row = self._rows[index]
        width = int(row["width"])
        return JpegHeader(width, int(row["height"])) if width else None

    def describe(self, index: int) -> str:
        """The shard and the name of the image in it."""
        row = self._rows[index]
        if row["shard"] >= len(self._shards):
            return f"{self._folder}: image {index}"
        path = self._path(int(row["shard"]))
        try:
            with path.open("rb") as file:
                file.seek(int(row["offset"]) - 512)
                name = TarInfo.frombuf(file.read(512), "utf-8", "replace").name
        except Exception:  # a broken shard is to be named all the same
            name = f"the image at byte {int(row['offset'])}"
        return f"{path}: {name}"

    def _path(self, shard: int) -> Path:
        return self._folder / self._shards[shard].name


def _read_once(path: Path, length: int, offset: int) -> bytes:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(file, length, offset)
    finally:
        os.close(file)


def open_index(path: Path) -> npt.NDArray[Any]:
    """The rows of an index, :data:`ROW` ``[num_samples]``, in shared memory. Raises ConfigError where it is none."""
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError([f"{path} is no index of shards: {error}; {SHARDS_HINT}"]) from None
    if rows.dtype != ROW or rows.ndim != 1:
        raise ConfigError([f"{path} is no index of shards; {SHARDS_HINT}"])
    return rows.view(np.ndarray)


def index_tar(path: Path, shard: int, kept_as: Format = "jpeg") -> npt.NDArray[Any]:
    """What the index says of one shard: :data:`ROW` ``[num_samples]``. Reads all of it.

    Raises:
        UnsafeTarError: a member that does not belong into a shard, or an image without its class.
    """
    rows: list[tuple[int, ...]] = []
    image: tuple[str, int, bytes] | None = None
    label: tuple[str, int] | None = None
    with open_tar(path) as archive:
        for member in safe_members(archive, str(path)):
            key, _, ending = member.name.rpartition(".")
            if ending.lower() in IMAGE_ENDINGS[kept_as]:
                if image is not None:
                    raise UnsafeTarError(f"{path} has no {image[0]}.{LABEL_ENDING} beside the image")
                image = key, member.offset_data, contents(archive, member).read()
            elif ending == LABEL_ENDING:
                label = key, _label(path, member.name, contents(archive, member).read(32))
            if image is not None and label is not None:
                if image[0] != label[0]:
                    raise UnsafeTarError(f"{path} has {image[0]} beside {label[0]}.{LABEL_ENDING}: keys must agree")
                width, height = _size(path, image[0], image[2], kept_as)
                rows.append((image[1], label[1], len(image[2]), zlib.crc32(image[2]), width, height, shard))
                image = label = None
    if image is not None or label is not None:
        raise UnsafeTarError(f"{path} ends in the middle of a sample")
    return np.array(rows, dtype=ROW)


def _label(path: Path, name: str, text: bytes) -> int:
    if not text.strip().isdigit():
        raise UnsafeTarError(f"{path}: {name} holds {text!r}, not the number of a class")
    return int(text)


def _size(path: Path, key: str, data: bytes, kept_as: Format) -> tuple[int, int]:
    header = read_header(data) if kept_as == "jpeg" else read_ppm_header(data)
    if header is None and kept_as == "raw":
        raise UnsafeTarError(f"{path}: {key} holds no raw pixels, 1 to 65,535 to a side")
    return (header.width, header.height) if header else (0, 0)


def record_of(path: Path) -> FileRecord:
    """The manifest's line for a file. Reads all of it."""
    checksum, num_bytes = 0, 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            checksum, num_bytes = zlib.crc32(block, checksum), num_bytes + len(block)
    return FileRecord(path.name, num_bytes, checksum)


def write_atomically(path: Path, data: bytes, durable: bool = True) -> None:
    """``path`` holds all of ``data`` or what it held before. ``durable``: also after the machine lost its power."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with unfinished.open("wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise
