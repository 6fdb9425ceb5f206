"""Folders of images to tar shards."""

import io
import json
import os
import shutil
import tarfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from imgnet.config import ConfigError
from imgnet.data.sources.folder import SPLITS, FolderSource, Split, class_names
from imgnet.data.sources.header import as_ppm, extension
from imgnet.data.sources.shards import (
    IMAGE_ENDINGS,
    INDEX,
    LABEL_ENDING,
    MANIFEST,
    ROW,
    FileRecord,
    Format,
    Manifest,
    SplitRecord,
    index_tar,
    open_index,
    record_of,
    write_atomically,
)
from imgnet.data.tools.pool import in_processes

PLAN = "plan.json"
_MAX_KEY, _MAX_BYTES = 40, 90  # letters, and what fits into the header of a tar member with the ending
_PARTS = ".parts"  # what is known of each finished shard, until the manifest is written


@dataclass(frozen=True)
class Recipe:
    """What is done to each image."""

    max_size: int | None
    """The shorter side is shrunk to so many pixels where it is larger; None: the bytes are kept as they are."""
    quality: int | None
    """JPEG quality, 1 to 95, of what is shrunk; None where nothing becomes a JPEG."""
    format: Format = "jpeg"
    """``raw``: each image is decoded, and its pixels are kept."""

    def __post_init__(self) -> None:
        """Raises ConfigError for what cannot be done, in the words of the command."""
        if self.format == "raw" and self.max_size is None:
            line = "--format raw without --max-size: pixels that are not shrunk take several times the space of JPEGs"
            raise ConfigError([f"{line}; add a size, such as --max-size 256"])
        if self.format == "raw" and self.quality is not None:
            raise ConfigError([f"--quality {self.quality} is for --format jpeg; raw pixels lose none, so leave it out"])


def shard_folder(source: Path, folder: Path, *, num_shards: int, recipe: Recipe, num_workers: int) -> Iterator[int]:
    """Write ``source`` as shards into ``folder``, and yield the number of images after each finished shard.

    Sample ``i`` of the shards is sample ``i`` of the folder. ``train`` has ``num_shards``, ``val`` as many as give
    shards of the same size. A command that was killed goes on with the shards that it had not finished.

    Raises:
        ConfigError: the folder is not as it should be, or was begun with other settings.
    """
    sources = open_splits(source)
    _keep_plan(folder, source, num_shards, recipe, sources)
    if (folder / MANIFEST).exists():
        yield sum(map(len, sources.values()))
        return
    yield from in_processes(partial(_write_shard, folder, recipe), _jobs(sources, num_shards), num_workers)
    records = {split: _finish_split(folder, split) for split in SPLITS}
    made_with: dict[str, Any] = {"max_size": recipe.max_size, "quality": recipe.quality if recipe.max_size else None}
    if recipe.format != "jpeg":  # so that the manifests of JPEGs stay the same bytes, and copies of them warm
        made_with["format"] = recipe.format
    Manifest(class_names(source / "train"), made_with, dict(records), recipe.format).write(folder)
    for parts in folder.glob(f"*/{_PARTS}"):
        shutil.rmtree(parts)


def open_splits(folder: Path) -> dict[Split, FolderSource]:
    """The splits of a folder of images, with as many classes as there are. Raises ConfigError."""
    num_classes = len(class_names(folder / "train")) if (folder / "train").is_dir() else 0
    return {split: FolderSource(folder, split, num_classes) for split in SPLITS}


@dataclass(frozen=True)
class _Job:
    """A shard to write: neighbours in the folder."""

    split: Split
    number: int
    first: int
    files: list[str]
    labels: list[int]


def _jobs(sources: dict[Split, FolderSource], num_shards: int) -> Iterator[_Job]:
    for split, source in sources.items():
        for number, (first, after) in enumerate(_bounds(len(source), num_shards, len(sources["train"]))):
            files = [source.describe(index) for index in range(first, after)]
            yield _Job(split, number, first, files, source.labels[first:after].tolist())


def _bounds(num_samples: int, num_shards: int, num_train: int) -> list[tuple[int, int]]:
    """The first sample of each shard and the one after its last; no shard is empty."""
    num = max(1, min(num_samples, round(num_shards * num_samples / num_train)))
    edges = [num_samples * shard // num for shard in range(num + 1)]
    return list(pairwise(edges))


def _keep_plan(folder: Path, source: Path, num_shards: int, recipe: Recipe, sources: dict[Split, FolderSource]) -> None:
    """Write down what is done, or make sure that it is what was begun."""
    counts = {split: len(found) for split, found in sources.items()}
    plan = {"source": str(source.resolve()), "num_shards": num_shards, "num_images": counts} | vars(recipe)
    path = folder / PLAN
    if not path.exists():
        if folder.is_dir() and any(folder.iterdir()):
            raise ConfigError([f"{folder} is not empty and holds no shards: name a new folder"])
        write_atomically(path, json.dumps(plan, indent=1).encode())
        return
    begun = {"format": "jpeg"} | json.loads(path.read_bytes())  # which the first plans did not say
    changed = [f"{key}={plan[key]} (was {begun.get(key)})" for key in plan if plan[key] != begun.get(key)]
    if changed:
        raise ConfigError([f"{folder} was begun with other settings: {', '.join(changed)}; name a new folder"])


def _write_shard(folder: Path, recipe: Recipe, job: _Job) -> int:
    path = folder / job.split / f"shard-{job.number:06d}.tar"
    part = folder / job.split / _PARTS / f"{job.number:06d}"
    if not part.with_suffix(".json").exists():
        part.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}")
        with unfinished.open("wb") as file:
            _write_tar(file, job, recipe)
            file.flush()
            os.fsync(file.fileno())
        # Read back, so that the index tells what is on the disk, and by the rules for shards from elsewhere.
        np.save(part.with_suffix(".npy"), index_tar(unfinished, job.number, recipe.format))
        record = record_of(unfinished)
        unfinished.replace(path)
        write_atomically(part.with_suffix(".json"), json.dumps([path.name, record.num_bytes, record.crc32]).encode())
    return len(job.files)


def _write_tar(file: IO[bytes], job: _Job, recipe: Recipe) -> None:
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for index, (name, label) in enumerate(zip(job.files, job.labels, strict=True), job.first):
            data = Path(name).read_bytes()
            if recipe.max_size is not None:
                data = _shrunk(data, recipe, recipe.max_size, name)
            key = f"{index:08d}_{Path(name).stem.replace('.', '_')}"[:_MAX_KEY]
            key = key.encode()[:_MAX_BYTES].decode(errors="ignore")
            kind = IMAGE_ENDINGS["raw"][0] if recipe.format == "raw" else extension(data)
            for ending, content in ((kind, data), (LABEL_ENDING, str(label).encode())):
                member = tarfile.TarInfo(f"{key}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def _shrunk(data: bytes, recipe: Recipe, max_size: int, name: str) -> bytes:
    """The image with ``max_size`` pixels on its shorter side, as a JPEG or as pixels. No image becomes larger.

    Raises:
        ConfigError: the image cannot be decoded.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about EXIF data that some of ImageNet's cameras wrote badly
            with Image.open(io.BytesIO(data)) as opened:
                if recipe.format == "jpeg" and min(opened.size) <= max_size:
                    return data
                image = _rgb(opened)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ConfigError([f"cannot read the image {name}: {error}; see imgnet data verify"]) from None
    scale = min(1, max_size / min(image.size))
    size = (round(image.width * scale), round(image.height * scale))
    small = image.resize(size, Image.Resampling.LANCZOS) if scale < 1 else image
    return as_ppm(*size, small.tobytes()) if recipe.format == "raw" else _jpeg(small, recipe.quality)


def _jpeg(image: Image.Image, quality: int | None) -> bytes:
    assert quality is not None, "the command gives one"
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()


def _rgb(image: Image.Image) -> Image.Image:
    """As :func:`imgnet.data.backends.decode.decode` does it: not turned, and the upper 8 of 16 bits of grey."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")


def _finish_split(folder: Path, split: Split) -> SplitRecord:
    parts = sorted((folder / split / _PARTS).glob("*.json"))
    rows = np.concatenate([open_index(part.with_suffix(".npy")) for part in parts]).astype(ROW)
    out = io.BytesIO()
    np.save(out, rows)
    write_atomically(folder / split / INDEX, out.getvalue())
    shards = [FileRecord(*json.loads(part.read_bytes())) for part in parts]
    return SplitRecord(len(rows), record_of(folder / split / INDEX), shards)
