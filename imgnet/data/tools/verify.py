"""Whether a folder of images, or of shards, is what it should be, to the last image."""

import json
import re
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy.typing as npt

from imgnet.data.sources.folder import SPLITS, FolderSource, Split
from imgnet.data.sources.shards import INDEX, MANIFEST, ShardSource, open_index, read_manifest, record_of
from imgnet.data.sources.source import ImageError
from imgnet.data.tools.pool import in_processes
from imgnet.data.tools.sharding import open_splits

IMAGENET_COUNTS: dict[Split, int] = {"train": 1_281_167, "val": 50_000}
JOURNAL = ".verify.jsonl"
JOURNAL_S = 24 * 3600.0
"""How long after its last line a journal is gone on with."""
_CHUNK = 500
_FIRST_PIXEL = (0, 0, 1, 1)
_WNID = re.compile(r"n\d{8}")

Sources = dict[Split, FolderSource] | dict[Split, ShardSource]


@dataclass(frozen=True)
class Verified:
    """Some images that were looked at, and what is wrong with them, one line each."""

    num_images: int
    problems: list[str]


def open_all(root: Path) -> Sources:
    """Both splits of a folder of images or of shards. Raises ConfigError where its layout is wrong."""
    if (root / MANIFEST).is_file():
        num_classes = len(read_manifest(root).classes)
        return {split: ShardSource(root, split, num_classes) for split in SPLITS}
    return open_splits(root)


def verify(root: Path, sources: Sources, num_workers: int) -> Iterator[Verified]:
    """Count, compare checksums where there are some, and decode every image.

    What was found is kept in a journal beside the images until the end, so that a command which was killed goes on.
    """
    yield Verified(0, _count_problems(root, sources))
    journal = _Journal(root / JOURNAL, _what(root, sources))
    yield from journal.done.values()
    jobs = [job for job in _jobs(root, sources) if _name(job) not in journal.done]
    for job, verified in zip(jobs, in_processes(partial(_look, root), jobs, num_workers), strict=True):
        journal.write(_name(job), verified)
        yield verified
    journal.remove()


def _what(root: Path, sources: Sources) -> str:
    """What a journal is of."""
    manifest = root / MANIFEST
    written = zlib.crc32(manifest.read_bytes()) if manifest.is_file() else None
    return json.dumps({"manifest": written} | {split: len(source) for split, source in sources.items()})


def _count_problems(root: Path, sources: Sources) -> list[str]:
    """ImageNet is known by its classes; of other images nothing is known before."""
    classes = _class_names(root)
    if len(classes) != 1000 or not all(map(_WNID.fullmatch, classes)):
        return []
    return [
        f"{root}/{split} has {len(sources[split]):,} images; ImageNet has {expected:,}"
        for split, expected in IMAGENET_COUNTS.items()
        if len(sources[split]) != expected
    ]


def _class_names(root: Path) -> list[str]:
    if (root / MANIFEST).is_file():
        return read_manifest(root).classes
    return [path.name for path in (root / "train").iterdir() if path.is_dir() and not path.name.startswith(".")]


@dataclass(frozen=True)
class _Job:
    """A shard to compare with its checksum, or some images to decode."""

    split: Split
    first: int
    after: int
    file: str | None = None


def _name(job: _Job) -> str:
    return f"{job.split} {job.file or job.first}"


def _jobs(root: Path, sources: Sources) -> Iterator[_Job]:
    if (root / MANIFEST).is_file():
        splits = read_manifest(root).splits
        for split in SPLITS:
            yield from (_Job(split, 0, 0, file.name) for file in splits[split].files)
    for split, source in sources.items():
        for first in range(0, len(source), _CHUNK):
            yield _Job(split, first, min(first + _CHUNK, len(source)))


def _look(root: Path, job: _Job) -> Verified:
    if job.file is not None:
        return _compare(root, job.split, job.file)
    from imgnet.data.backends.bad_images import describe_failure
    from imgnet.data.backends.decode import decode_sample

    source, checksums = _opened(root, job.split)
    problems = []
    for index in range(job.first, job.after):
        try:
            data = source.read(index)
            if checksums is not None and zlib.crc32(data) != checksums[index]:
                problems.append(f"{source.describe(index)}: the bytes differ from their checksum")
                continue
            decode_sample(source, index, data)
            if source.pixels is not None:
                source.pixels.part(index, _FIRST_PIXEL)  # whether the index says of it what it is
        except (ImageError, OSError) as error:
            problems.append(str(error) if isinstance(error, ImageError) else describe_failure(source, index, error))
    return Verified(job.after - job.first, problems)


def _compare(root: Path, split: Split, name: str) -> Verified:
    expected = next(file for file in read_manifest(root).splits[split].files if file.name == name)
    found = record_of(root / split / name)
    return Verified(0, [] if found == expected else [f"{root / split / name} differs from its checksum in {MANIFEST}"])


def _opened(root: Path, split: Split) -> tuple[FolderSource | ShardSource, npt.NDArray[Any] | None]:
    """Each process lists a folder once, since 1.28 million names are too much to be sent with each job."""
    if (root, split) not in _open:
        _open[root, split] = open_all(root)[split]
    checksums = open_index(root / split / INDEX)["checksum"] if (root / MANIFEST).is_file() else None
    return _open[root, split], checksums


_open: dict[tuple[Path, Split], FolderSource | ShardSource] = {}


class _Journal:
    """What is done of a verification. A folder that cannot be written to is verified without one.

    One that is older than :data:`JOURNAL_S` holds no longer: what was whole then may not be now.
    """

    def __init__(self, path: Path, head: str) -> None:
        self._path: Path | None = path
        self.done: dict[str, Verified] = {}
        is_new = path.is_file() and time.time() - path.stat().st_mtime < JOURNAL_S
        lines = path.read_text().splitlines() if is_new else []
        if lines and lines[0] == head:
            for line in lines[1:]:
                self._read(line)
            return
        try:
            path.write_text(head + "\n")
        except OSError:
            self._path = None

    def write(self, name: str, verified: Verified) -> None:
        """Remember that a job was done."""
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(json.dumps([name, verified.num_images, verified.problems]) + "\n")

    def remove(self) -> None:
        """All is done."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _read(self, line: str) -> None:
        try:
            name, num_images, problems = json.loads(line)
        except ValueError:  # the last line of a command that was killed
            return
        self.done[name] = Verified(num_images, problems)
