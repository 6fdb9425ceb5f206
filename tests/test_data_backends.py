"""What has to be the same whoever decodes and wherever the bytes lie."""

import io
import logging
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from imgnet.config import DataBackend, DataConfig, DataKind, Interpolation, OnBadImage
from imgnet.data.backends.backend import BatchKey, Finisher
from imgnet.data.backends.bad_images import BadImages
from imgnet.data.backends.decode import DecodedParts
from imgnet.data.backends.pool import PoolBackend
from imgnet.data.checks import dali_is_installed
from imgnet.data.loader import build_eval_loader, build_train_loader, data_root, prepare
from imgnet.data.sampling.order import epoch_order
from imgnet.data.sampling.view import EvalView, Resizing, TrainView
from imgnet.data.sources.folder import FolderSource
from imgnet.data.sources.source import ImageError
from imgnet.data.tools.sharding import Recipe, shard_folder
from imgnet.data.tools.synthesize import picture
from imgnet.runtime import Runtime

CPU = torch.device("cpu")
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
NUM_CLASSES, NUM_TRAIN, NUM_VAL, SEED = 3, 27, 10, 7

needs_dali = pytest.mark.skipif(not dali_is_installed(), reason="DALI is not installed")
DALI = pytest.param(DataBackend.dali, marks=needs_dali)
BACKENDS = pytest.mark.parametrize("backend", [DataBackend.torchvision, DALI], ids=lambda backend: backend.name)
PATHS = pytest.mark.parametrize(
    ("backend", "kind"),
    [
        (DataBackend.torchvision, DataKind.shards),
        pytest.param(DataBackend.dali, DataKind.folder, marks=needs_dali),
        pytest.param(DataBackend.dali, DataKind.shards, marks=needs_dali),
    ],
)


def encoded(image, kind="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def oddity(image, number):
    """What ImageNet holds beside ordinary JPEGs."""
    turned = Image.Exif()
    turned[0x0112] = 2 + number % 7
    kinds = [
        encoded(image.convert("L"), quality=90),
        encoded(image.convert("CMYK"), quality=90),
        encoded(image, "PNG"),
        encoded(image, exif=turned, quality=90),
        encoded(image, progressive=True, quality=90),
        encoded(image, quality=90, subsampling=0),
    ]
    return kinds[number // 3 % len(kinds)] if number % 3 == 0 else encoded(image, quality=90)


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """The same images as files and as shards."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for split, num in (("train", NUM_TRAIN), ("val", NUM_VAL)):
        for number in range(num):
            path = root / "folder" / split / f"class{number % NUM_CLASSES}" / f"{number:03d}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            width, height = generator.integers(100, 400, 2).tolist()
            path.write_bytes(oddity(picture((1, number), width, height), number))
    recipe = Recipe(max_size=None, quality=90)
    list(shard_folder(root / "folder", root / "shards", num_shards=4, recipe=recipe, num_workers=1))
    return {DataKind.folder: root / "folder", DataKind.shards: root / "shards"}


@pytest.fixture
def config(roots):
    return DataConfig(
        name="images",
        kind=DataKind.folder,
        backend=DataBackend.torchvision,
        root=str(roots[DataKind.folder]),
        num_classes=NUM_CLASSES,
        train_px=48,
        eval_px=48,
        eval_resize_px=64,
        mean=MEAN,
        std=STD,
        num_workers=0,
    )


def train_batches(config, epoch, start_step=0, rank=0, world_size=1, global_batch_size=8):
    worker = Runtime(rank, world_size, rank, world_size, CPU, 2)
    loader = build_train_loader(
        config, seed=SEED, global_batch_size=global_batch_size, channels_last=True, worker=worker
    )
    batches = [(pixels(batch.images), batch.targets) for batch in loader.batches(epoch, start_step)]
    loader.close()
    return batches


def eval_batches(config):
    loader = build_eval_loader(config, local_batch_size=4, channels_last=True, worker=Runtime(0, 1, 0, 1, CPU, 2))
    batches = [(pixels(batch.images), batch.targets) for batch in loader.batches()]
    loader.close()
    return batches


def pixels(images):
    """Undo the normalisation: values from 0 to 255."""
    return (images * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)) * 255


def assert_alike(batches, others, most=0.01):
    """The same samples, cut and mirrored alike: any other crop would differ by tens of levels."""
    assert len(batches) == len(others) > 0
    for (images, targets), (other_images, other_targets) in zip(batches, others, strict=True):
        assert torch.equal(targets, other_targets)
        assert (images - other_images).abs().mean() <= most


@PATHS
def test_all_back_ends_see_the_same_crops(config, roots, backend, kind):
    other = replace(config, backend=backend, kind=kind, root=str(roots[kind]))
    for epoch in (0, 1):
        assert_alike(train_batches(other, epoch), train_batches(config, epoch))
    assert_alike(eval_batches(other), eval_batches(config))


@PATHS
@pytest.mark.parametrize("world_size", [2, 4])
def test_the_global_step_is_the_same_set_on_any_number_of_ranks(config, roots, backend, kind, world_size):
    other = replace(config, backend=backend, kind=kind, root=str(roots[kind]))
    parts = [train_batches(other, 2, rank=rank, world_size=world_size) for rank in range(world_size)]
    together = [
        (torch.cat([images for images, _ in step]), torch.cat([targets for _, targets in step]))
        for step in zip(*parts, strict=True)
    ]
    assert_alike(together, train_batches(config, 2))


@PATHS
def test_a_restart_in_the_middle_of_an_epoch_changes_nothing(config, roots, backend, kind):
    other = replace(config, backend=backend, kind=kind, root=str(roots[kind]))
    assert_alike(train_batches(other, 3, start_step=1), train_batches(config, 3)[1:])


@needs_dali
@pytest.mark.parametrize("resizing", [Resizing(), Resizing(Interpolation.bicubic), Resizing(antialias=False)])
@pytest.mark.parametrize("split", ["train", "val", "squashed"])
def test_the_graph_of_the_gpu_cuts_the_same(config, roots, split, resizing):
    """DALI's own resizing, which only GPUs use, differs from torch's by less than half a level of 255."""
    from imgnet.data.backends.dali import DaliBackend

    views = {
        "train": TrainView(48, SEED, [0.08, 1.0], [0.75, 4 / 3], 0.5, resizing=resizing),
        "val": EvalView(48, 64, resizing=resizing),
        "squashed": EvalView(48, 50, squash=True, resizing=resizing),
    }
    view, split = views[split], "train" if split == "train" else "val"
    source = FolderSource(roots[DataKind.folder], split, NUM_CLASSES)
    finish = Finisher(
        source.labels,
        BadImages(OnBadImage.error, 0, split),
        [0, 0, 0],
        [1 / 255] * 3,
        device=CPU,
        channels_last=True,
        dtype=torch.float32,
    )
    reference = PoolBackend(source, view, finish, partial(DecodedParts, source, view), num_threads=1)
    graph = DaliBackend(source, view, finish, num_threads=1, device=CPU)
    keys = [BatchKey(0, epoch_order(SEED, 0, len(source))[at : at + 5]) for at in (0, 5)]
    for expected, batch in zip(reference.batches(keys), graph.batches(keys), strict=True):
        assert (expected.images - batch.images).abs().mean() < 0.5
        assert torch.equal(expected.targets, batch.targets)
    graph.close()
    reference.close()


@pytest.fixture
def damaged(config, tmp_path):
    """Ten images of each split, of which two cannot be read: one that shows it and one that looks like a JPEG."""
    for split in ("train", "val"):
        for number in range(12):
            path = tmp_path / split / f"class{number % NUM_CLASSES}" / f"{number:03d}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            data = encoded(picture((2, number), 80, 60), quality=90)
            if number == 4:
                data = data[: len(data) // 2]
            if number == 9:
                at = data.index(b"\xff\xda")  # where the pixels begin
                data = data[:at] + b"\xff\xd9"
            path.write_bytes(data)
    return replace(config, root=str(tmp_path))


@BACKENDS
def test_an_unreadable_image_ends_the_run_and_is_named(damaged, backend):
    with pytest.raises(ImageError, match=r"cannot read the image .*/train/class\d/00[49]\.JPEG: "):
        train_batches(replace(damaged, backend=backend), 0)


@BACKENDS
@pytest.mark.parametrize("num_workers", [0, 2])
def test_unreadable_images_are_skipped_counted_and_logged(damaged, backend, num_workers, caplog):
    skipping = replace(damaged, backend=backend, on_bad_image=OnBadImage.skip, num_workers=num_workers)
    with caplog.at_level(logging.WARNING, "imgnet"):
        for epoch in range(2):
            batches = train_batches(skipping, epoch, global_batch_size=6)
            assert [len(targets) for _, targets in batches] == [6, 6]
    lines = [record.getMessage() for record in caplog.records]
    assert len([line for line in lines if "class1/004.JPEG" in line]) == 2  # once for each loader
    assert any("(number 2 of train on this worker)" in line for line in lines)
    assert sum(len(targets) for _, targets in eval_batches(skipping)) == 10


@needs_dali
def test_skipped_images_are_replaced_alike(damaged):
    skipping = replace(damaged, on_bad_image=OnBadImage.skip)
    for epoch in range(2):
        other = train_batches(replace(skipping, backend=DataBackend.dali), epoch)
        assert_alike(other, train_batches(skipping, epoch))


@BACKENDS
def test_too_many_unreadable_images_end_the_run(damaged, backend):
    strict = replace(damaged, backend=backend, on_bad_image=OnBadImage.skip, max_bad_images=1)
    with pytest.raises(ImageError, match=r"more than data\.max_bad_images=1 images cannot be read; the last: .*JPEG"):
        train_batches(strict, 0, global_batch_size=6)


def test_a_bad_image_is_replaced_by_the_good_one_before_it():
    policy = BadImages(OnBadImage.skip, 10, "train")
    places = policy.places_to_take(np.arange(10, 16), {0: "a", 3: "b", 4: "c"})
    assert places.tolist() == [1, 1, 2, 2, 2, 5]
    assert policy.num_skipped == 3
    policy.places_to_take(np.arange(10, 16), {0: "a"})
    assert policy.num_skipped == 3
    with pytest.raises(ImageError, match="no image of a batch can be read; the first: x"):
        policy.places_to_take(np.array([50]), {0: "x"})


def test_shards_are_read_from_where_they_were_staged(config, roots, tmp_path):
    shards = replace(config, kind=DataKind.shards, root=str(roots[DataKind.shards]))
    staged = replace(shards, stage_to=str(tmp_path))
    prepare(staged)
    assert data_root(staged).parent == tmp_path
    assert_alike(train_batches(staged, 0), train_batches(shards, 0), most=0)


@pytest.fixture(scope="module")
def trained(digits_root):
    """A linear classifier of the digits as torchvision decodes them, by least squares."""
    config = DataConfig(
        name="digits",
        kind=DataKind.folder,
        backend=DataBackend.torchvision,
        root=str(digits_root),
        num_classes=10,
        train_px=16,
        eval_px=16,
        eval_resize_px=16,
        crop_scale=[1.0, 1.0],
        crop_ratio=[1.0, 1.0],
        flip_probability=0.0,
        mean=MEAN,
        std=STD,
        num_workers=0,
    )
    ((images, targets),) = train_batches(config, 0, global_batch_size=1437)
    wanted = torch.nn.functional.one_hot(targets, 10).float()
    weights = torch.linalg.lstsq(flat(images), wanted, driver="gelsd").solution
    return config, weights


def flat(images):
    features = images.mean(1).flatten(1) / 255
    return torch.cat([features, torch.ones(len(features), 1)], dim=1)


@needs_dali
def test_a_model_scores_the_same_through_both(trained):
    config, weights = trained
    scores = {}
    for backend in (DataBackend.torchvision, DataBackend.dali):
        batches = eval_batches(replace(config, backend=backend))
        right = sum((flat(images) @ weights).argmax(1).eq(targets).sum() for images, targets in batches)
        scores[backend] = 100 * float(right) / 360
    assert scores[DataBackend.torchvision] > 85
    assert abs(scores[DataBackend.torchvision] - scores[DataBackend.dali]) <= 0.3


@pytest.mark.gpu
@needs_dali
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_on_a_gpu_batches_arrive_there_in_the_precision_of_training(config, dtype):
    device = torch.device("cuda", 0)
    chosen = replace(config, backend=DataBackend.dali)
    worker = Runtime(0, 1, 0, 1, device, 2)
    loader = build_train_loader(chosen, seed=SEED, global_batch_size=8, channels_last=True, worker=worker, dtype=dtype)
    for batch, (expected, targets) in zip(loader.batches(0), train_batches(config, 0), strict=True):
        assert batch.images.device == device
        assert batch.images.dtype == dtype
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(batch.targets.cpu(), targets)
        assert (pixels(batch.images.float().cpu()) - expected).abs().mean() < 2
    loader.close()
