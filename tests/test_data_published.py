"""What a model is shown is what published results were made with: torchvision's ImageFolder and its transforms."""

import io
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import pil_to_tensor
from torchvision.transforms.v2 import functional as reference

from imgnet.config import DataBackend, DataConfig, DataKind
from imgnet.data.checks import dali_is_installed
from imgnet.data.loader import build_eval_loader, build_train_loader
from imgnet.data.sampling.augment import crop_boxes, flips
from imgnet.data.sampling.order import epoch_order
from imgnet.data.tools.sharding import Recipe, shard_folder
from imgnet.data.tools.synthesize import picture
from imgnet.runtime import Runtime

SEED, PX, RESIZE_PX = 3, 40, 48
ORIENTATION = 0x0112
WORKER = Runtime(0, 1, 0, 1, torch.device("cpu"), 2)
PATHS = pytest.mark.parametrize(
    ("backend", "kind"),
    [
        pytest.param(
            backend,
            kind,
            id=f"{backend.name}-{kind.name}",
            marks=pytest.mark.skipif(
                backend is DataBackend.dali and not dali_is_installed(), reason="DALI is not installed"
            ),
        )
        for backend in (DataBackend.torchvision, DataBackend.dali)
        for kind in (DataKind.folder, DataKind.shards)
    ],
)


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 90} if kind == "JPEG" else {}), **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def with_four_inks(image: Image.Image) -> bytes:
    """A CMYK JPEG in which all four inks matter."""
    return encoded(Image.merge("CMYK", [*image.split(), image.convert("L")]))


def as_ycck(jpeg: bytes) -> bytes:
    """The same numbers, declared as YCCK by Adobe's marker."""
    at = jpeg.index(b"Adobe") + 11
    return jpeg[:at] + b"\x02" + jpeg[at + 1 :]


def without_adobe(jpeg: bytes) -> bytes:
    """The marker's segment taken out, which tells how the inks are stored."""
    at = jpeg.index(b"Adobe") - 4
    (length,) = struct.unpack_from(">H", jpeg, at + 2)
    return jpeg[:at] + jpeg[at + 2 + length :]


def kinds(image: Image.Image) -> Iterator[bytes]:
    """Every orientation that a camera writes, and what else is found in folders of photographs."""
    grey = image.convert("L")
    for orientation in range(1, 9):
        yield encoded(image, exif=turned(orientation))
    yield encoded(image, "PNG", exif=turned(6))
    yield encoded(image, "WEBP", exif=turned(6))
    yield encoded(grey, exif=turned(8))
    yield encoded(grey)
    yield with_four_inks(image)
    yield as_ycck(with_four_inks(image))
    yield without_adobe(with_four_inks(image))
    yield encoded(image, progressive=True)
    yield encoded(image, subsampling=0)
    yield encoded(image, keep_rgb=True)
    yield encoded(image.quantize(100), "PNG", transparency=3)
    yield encoded(image.convert("1"), "PNG")
    for mode, transparent in (("RGBA", image.copy()), ("LA", grey.copy())):
        transparent.putalpha(grey)
        assert transparent.mode == mode
        yield encoded(transparent, "PNG")
    yield encoded(image, "WEBP", lossless=True)


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[DataKind, Path]:
    """The same images as files and as shards, train and val alike."""
    root = tmp_path_factory.mktemp("kinds")
    for split in ("train", "val"):
        for number, data in enumerate(kinds(picture((5, 5), 90, 61))):
            path = root / "folder" / split / f"class{number % 2}" / f"{number:03d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    recipe = Recipe(max_size=None, quality=90)
    list(shard_folder(root / "folder", root / "shards", num_shards=2, recipe=recipe, num_workers=1))
    return {DataKind.folder: root / "folder", DataKind.shards: root / "shards"}


def config_of(roots: dict[DataKind, Path], backend: DataBackend, kind: DataKind) -> DataConfig:
    return DataConfig(
        name="kinds",
        kind=kind,
        root=str(roots[kind]),
        backend=backend,
        num_classes=2,
        train_px=PX,
        eval_px=PX,
        eval_resize_px=RESIZE_PX,
        mean=[0.0] * 3,
        std=[1 / 255] * 3,  # so that normalised images are their pixels
        num_workers=0,
    )


def image_folder(roots: dict[DataKind, Path], split: str) -> list[tuple[Tensor, int]]:
    """What torchvision's loader makes of the files: uint8 ``[3, height, width]`` and the class."""
    found = ImageFolder(roots[DataKind.folder] / split, transform=pil_to_tensor)
    return [found[number] for number in range(len(found))]


@PATHS
def test_validation_sees_what_image_folder_sees(roots: dict[DataKind, Path], backend: DataBackend, kind: DataKind):
    loader = build_eval_loader(config_of(roots, backend, kind), local_batch_size=7, channels_last=True, worker=WORKER)
    batches = list(loader.batches())
    loader.close()
    images, targets = torch.cat([batch.images for batch in batches]), torch.cat([batch.targets for batch in batches])
    expected = image_folder(roots, "val")
    assert targets.tolist() == [label for _, label in expected]
    for seen, (image, _) in zip(images, expected, strict=True):
        resized = reference.resize(image, [RESIZE_PX], antialias=True)
        assert torch.equal(seen.round().to(torch.uint8), reference.center_crop(resized, [PX, PX]))


@PATHS
def test_training_cuts_what_image_folder_sees(roots: dict[DataKind, Path], backend: DataBackend, kind: DataKind):
    config, expected = config_of(roots, backend, kind), image_folder(roots, "train")
    loader = build_train_loader(config, seed=SEED, global_batch_size=len(expected), channels_last=True, worker=WORKER)
    (batch,) = loader.batches(0)
    loader.close()
    order = epoch_order(SEED, 0, len(expected))
    for seen, target, index in zip(batch.images, batch.targets, order.tolist(), strict=True):
        image, label = expected[index]
        height, width = image.shape[1:]
        ((left, top, wide, high),) = crop_boxes(
            SEED, 0, [index], [width], [height], config.crop_scale, config.crop_ratio
        ).tolist()
        square = reference.resized_crop(image, top, left, high, wide, [PX, PX], antialias=True)
        if flips(SEED, 0, [index], config.flip_probability)[0]:
            square = square.flip(-1)
        assert target == label
        assert torch.equal(seen.round().to(torch.uint8), square)
