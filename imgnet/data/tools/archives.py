"""ImageNet's archives, as they are downloaded, to the layout that everything else reads.

``ILSVRC2012_img_train.tar`` holds a tar for each class, ``ILSVRC2012_img_val.tar`` images without their classes, which
the devkit ``ILSVRC2012_devkit_t12.tar.gz`` tells. The results are ``train/<wnid>``, ``val/<wnid>``,
``dev/ILSVRC2012_devkit_t12`` and ``meta.bin``, which torchvision's ImageNet reads too.
"""

import io
import re
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from imgnet.config import ConfigError
from imgnet.data.sources.shards import write_atomically
from imgnet.data.tools.pool import in_processes
from imgnet.data.tools.tar import contents, named_where_damaged, open_tar, safe_members

TRAIN, VAL, DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"
DEVKIT_NAME = "ILSVRC2012_devkit_t12"
GROUND_TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"
META = "data/meta.mat"

_VAL_NUMBER = re.compile(r"_(\d{8})\.JPEG$")
_LEAVES = 0  # how many children a class has that images are labelled with


@dataclass(frozen=True)
class Devkit:
    """What the devkit tells."""

    names: dict[str, tuple[str, ...]]
    """The words for each class, by its wnid (``n01440764``)."""
    val_wnids: list[str]
    """The class of each validation image, in the order of their numbers."""


def archive_bytes(archives: Path) -> int:
    """The size of the archives. Raises ConfigError where some are not there."""
    missing = [name for name in (TRAIN, VAL, DEVKIT) if not (archives / name).is_file()]
    if missing:
        raise ConfigError(
            [f"{archives / name} is not there; image-net.org gives it to registered users" for name in missing]
        )
    return sum((archives / name).stat().st_size for name in (TRAIN, VAL, DEVKIT))


def prepare_imagenet(archives: Path, out: Path, num_workers: int) -> Iterator[int]:
    """Extract all that is not there yet, and yield how many bytes of the archives are done after each step.

    Raises:
        ConfigError: an archive is missing, or does not fit the devkit.
        UnsafeTarError: an archive is damaged, or has a member that could reach outside its folder.
    """
    archive_bytes(archives)
    _extract_devkit(archives / DEVKIT, out / "dev")
    devkit = read_devkit(out / "dev" / DEVKIT_NAME)
    yield (archives / DEVKIT).stat().st_size
    (out / "train").mkdir(parents=True, exist_ok=True)
    extract = partial(_extract_class, archives / TRAIN, out / "train")
    yield from in_processes(extract, _classes(archives / TRAIN, devkit), num_workers)
    yield from _extract_val(archives / VAL, out, devkit)
    if not (out / "meta.bin").exists():
        _write_meta(out / "meta.bin", devkit)


def read_devkit(folder: Path) -> Devkit:
    """Raises ConfigError where the devkit is not as it should be."""
    from scipy.io import loadmat

    try:
        synsets = loadmat(str(folder / META), squeeze_me=True)["synsets"]
        leaves = [synset for synset in synsets if int(synset["num_children"]) == _LEAVES]
        wnids = {int(leaf["ILSVRC2012_ID"]): str(leaf["WNID"]) for leaf in leaves}
        names = {str(leaf["WNID"]): tuple(str(leaf["words"]).split(", ")) for leaf in leaves}
        numbers = [int(line) for line in (folder / GROUND_TRUTH).read_text().split()]
        return Devkit(names, [wnids[number] for number in numbers])
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise ConfigError([f"{folder} is no devkit of ILSVRC2012: {error!r}"]) from None


def _extract_devkit(archive: Path, folder: Path) -> None:
    if (folder / DEVKIT_NAME).is_dir():
        return
    unfinished = _emptied(folder / f".{DEVKIT_NAME}")
    # A few megabytes, unpacked in memory, so that one reader serves compressed and plain archives.
    packed = io.BytesIO(archive.read_bytes())
    with named_where_damaged(str(archive)), tarfile.open(fileobj=packed, mode="r:gz") as opened:
        for member in safe_members(opened, str(archive)):
            path = unfinished / PurePosixPath(member.name).relative_to(PurePosixPath(member.name).parts[0])
            _write(contents(opened, member), path)
    unfinished.rename(folder / DEVKIT_NAME)


@dataclass(frozen=True)
class _Class:
    """The tar of a class inside the archive of all: where it begins, and how long it is."""

    wnid: str
    offset: int
    size: int


def _classes(archive: Path, devkit: Devkit) -> list[_Class]:
    with open_tar(archive) as opened:
        members = list(safe_members(opened, str(archive)))
    classes = [_Class(PurePosixPath(member.name).stem, member.offset_data, member.size) for member in members]
    strange = sorted({found.wnid for found in classes} ^ set(devkit.names))
    if strange:
        raise ConfigError([f"{archive} and the devkit differ in {len(strange)} classes, such as {strange[0]}"])
    return classes


def _extract_class(archive: Path, folder: Path, job: _Class) -> int:
    finished = folder / job.wnid
    if not finished.is_dir():
        unfinished = _emptied(folder / f".{job.wnid}")
        with archive.open("rb") as file:
            file.seek(job.offset)
            where = f"{archive}: {job.wnid}.tar"
            with named_where_damaged(where), tarfile.open(fileobj=file, mode="r:") as opened:
                for member in safe_members(opened, where):
                    _write(contents(opened, member), unfinished / PurePosixPath(member.name).name)
        unfinished.rename(finished)
    return job.size


def _extract_val(archive: Path, out: Path, devkit: Devkit) -> Iterator[int]:
    if (out / "val").is_dir():
        yield archive.stat().st_size
        return
    unfinished, found = out / ".val", 0
    with named_where_damaged(str(archive)), open_tar(archive) as opened:
        for member in safe_members(opened, str(archive)):
            number = _VAL_NUMBER.search(member.name)
            if number is None or not 1 <= int(number[1]) <= len(devkit.val_wnids):
                raise ConfigError([f"{archive} has {member.name!r}, which the devkit does not know"])
            path = unfinished / devkit.val_wnids[int(number[1]) - 1] / PurePosixPath(member.name).name
            if not (path.is_file() and path.stat().st_size == member.size):
                _write(contents(opened, member), path)
            found += 1
            yield member.size
    if found != len(devkit.val_wnids):
        raise ConfigError([f"{archive} has {found} images; the devkit knows {len(devkit.val_wnids)}"])
    unfinished.rename(out / "val")


def _write(data: IO[bytes], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}")
    with unfinished.open("wb") as file:
        shutil.copyfileobj(data, file)
    unfinished.rename(path)


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _write_meta(path: Path, devkit: Devkit) -> None:
    import torch

    data = io.BytesIO()
    torch.save((devkit.names, devkit.val_wnids), data)
    write_atomically(path, data.getvalue())
