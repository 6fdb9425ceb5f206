import gc
import io
import random
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms.v2 import functional as reference

from imgnet.config import ConfigError, DataBackend, DataConfig, DataKind
from imgnet.data.backends.backend import Normalizer
from imgnet.data.backends.decode import decode
from imgnet.data.checks import dali_is_installed
from imgnet.data.loader import build_eval_loader, build_train_loader, prepare
from imgnet.data.sampling.augment import crop_boxes, flips
from imgnet.data.sampling.order import epoch_order
from imgnet.data.sampling.view import TrainView
from imgnet.data.sources.digits import NUM_TRAIN, NUM_VAL
from imgnet.data.sources.folder import FolderSource
from imgnet.data.sources.source import ImageError
from imgnet.runtime import Runtime
from tests.commands import ROOT

CPU = torch.device("cpu")
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
NUM_CLASSES, NUM_TRAIN_FILES, NUM_VAL_FILES = 3, 26, 11
SEED = 5


def runtime(rank=0, world_size=1, num_threads=1):
    return Runtime(rank, world_size, rank, world_size, CPU, num_threads)


def picture(width, height, seed):
    """Smooth colours, so that a shift by a pixel is seen and the decoders' roundings are not."""
    grid = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image, kind="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of many sizes, some grey, some PNG under another name, in three classes."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for split, num in (("train", NUM_TRAIN_FILES), ("val", NUM_VAL_FILES)):
        for number in range(num):
            path = root / split / f"class{number % NUM_CLASSES}" / f"{number:03d}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            width, height = generator.integers(20, 90, 2)
            image = picture(width, height, number).convert("L" if number % 5 == 0 else "RGB")
            path.write_bytes(encoded(image, "PNG" if number % 4 == 0 else "JPEG"))
    return root


BACKENDS = [
    DataBackend.torchvision,
    pytest.param(DataBackend.dali, marks=pytest.mark.skipif(not dali_is_installed(), reason="DALI is not installed")),
]


@pytest.fixture(params=BACKENDS, ids=lambda backend: backend.name)
def config(request, plain_config):
    """For what every back end has to do."""
    return replace(plain_config, backend=request.param)


@pytest.fixture
def plain_config(folder):
    return DataConfig(
        backend=DataBackend.torchvision,
        name="folder",
        kind=DataKind.folder,
        root=str(folder),
        num_classes=NUM_CLASSES,
        train_px=24,
        eval_px=24,
        eval_resize_px=32,
        mean=MEAN,
        std=STD,
        num_workers=0,
    )


@pytest.fixture
def synthetic(plain_config):
    return replace(plain_config, kind=DataKind.synthetic, root=None, num_train=200, num_val=359)


def train_loader(config, *, global_batch_size=8, worker=None, channels_last=True):
    return build_train_loader(
        config, seed=SEED, global_batch_size=global_batch_size, channels_last=channels_last, worker=worker or runtime()
    )


def eval_loader(config, *, local_batch_size=4, worker=None):
    return build_eval_loader(config, local_batch_size=local_batch_size, channels_last=True, worker=worker or runtime())


def pixels(images):
    """Undo the normalisation: uint8 values as floats."""
    return (images * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)) * 255


def assert_same(batches, others):
    batches, others = list(batches), list(others)
    assert len(batches) == len(others) > 0
    for batch, other in zip(batches, others, strict=True):
        assert torch.equal(batch.images, other.images)
        assert torch.equal(batch.targets, other.targets)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "PNG"), ("P", "PNG"), ("L", "PNG"), ("RGB", "WEBP")],
)
def test_images_of_every_kind_become_rgb(mode, kind):
    data = encoded(picture(40, 30, 1).convert(mode), kind)
    image = decode(data)
    assert image.dtype == torch.uint8
    assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_sixteen_bits_become_eight():
    values = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    image = decode(encoded(Image.fromarray(values), "PNG"))
    assert torch.equal(image, torch.from_numpy((values >> 8).astype(np.uint8)).expand(3, 32, 32))


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_normaliser_does_what_its_formula_says(channels_last):
    values = torch.randint(0, 256, (4, 5, 7, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = (values.double() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    normalizer = Normalizer(MEAN, STD, CPU, channels_last)
    together, one_by_one = normalizer.empty(4, 5, 7), normalizer.empty(4, 5, 7)
    normalizer(values, together)
    for image, out in zip(values, one_by_one, strict=True):
        normalizer(image, out)
    images = normalizer.as_images(together)
    assert images.dtype == torch.float32
    torch.testing.assert_close(images, expected.permute(0, 3, 1, 2).float(), rtol=0, atol=2e-6)
    assert torch.equal(together, one_by_one)


@pytest.mark.parametrize("channels_last", [True, False])
def test_batches_have_the_promised_form(config, channels_last):
    loader = train_loader(config, channels_last=channels_last)
    assert (loader.num_samples, loader.steps_per_epoch) == (NUM_TRAIN_FILES, 3)
    for batch in loader.batches(0):
        assert batch.images.shape == (8, 3, 24, 24)
        assert batch.images.dtype == torch.float32
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        assert batch.images.is_contiguous(memory_format=memory_format)
        assert batch.targets.dtype == torch.int64
        assert batch.targets.shape == (8,)


def test_training_images_are_the_crops_of_the_contract(config, folder):
    source = FolderSource(folder, "train", NUM_CLASSES)
    epoch, indices = 2, epoch_order(SEED, 2, NUM_TRAIN_FILES)[:8]
    batch = next(train_loader(config).batches(epoch))
    mirrored = flips(SEED, epoch, indices, 0.5)
    assert 0 < mirrored.sum() < 8
    for place, index in enumerate(indices):
        image = Image.open(source.describe(index)).convert("RGB")
        box = crop_boxes(SEED, epoch, [index], [image.width], [image.height], config.crop_scale, config.crop_ratio)
        left, top, width, height = box[0].tolist()
        cut = image.crop((left, top, left + width, top + height)).resize((24, 24), Image.Resampling.BILINEAR)
        expected = np.asarray(ImageOps.mirror(cut) if mirrored[place] else cut, dtype=float)
        difference = np.abs(pixels(batch.images[place]).permute(1, 2, 0).numpy() - expected)
        assert difference.max() <= 4
        assert difference.mean() < 0.6
        assert batch.targets[place] == source.labels[index]


def test_validation_images_are_resized_and_cut_as_torchvision_does(config, folder):
    source = FolderSource(folder, "val", NUM_CLASSES)
    images = torch.cat([batch.images for batch in eval_loader(config).batches()])
    for index in range(NUM_VAL_FILES):
        expected = reference.center_crop(reference.resize(decode(source.read(index)), [32], antialias=True), [24, 24])
        assert torch.equal(pixels(images[index]).round().to(torch.uint8), expected)


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_global_batch_is_the_same_on_any_number_of_workers(config, world_size):
    alone = list(train_loader(config).batches(1))
    parts = [list(train_loader(config, worker=runtime(rank, world_size)).batches(1)) for rank in range(world_size)]
    for step, batch in enumerate(alone):
        assert torch.equal(batch.images, torch.cat([part[step].images for part in parts]))
        assert torch.equal(batch.targets, torch.cat([part[step].targets for part in parts]))


@pytest.mark.parametrize("kind", ["folder", "synthetic"])
def test_a_run_is_resumed_in_the_middle_of_an_epoch(config, synthetic, kind):
    chosen = config if kind == "folder" else synthetic
    whole = list(train_loader(chosen).batches(3))
    assert_same(whole[2:], train_loader(chosen).batches(3, start_step=2))
    assert not list(train_loader(chosen).batches(3, start_step=len(whole)))


def test_epochs_and_seeds_differ(config):
    first, second = (next(train_loader(config).batches(epoch)) for epoch in (0, 1))
    assert not torch.equal(first.images, second.images)


def test_evaluation_counts_each_of_359_images_once_on_three_workers(synthetic):
    many_classes = replace(synthetic, num_classes=1000)  # so that each image has a label of its own
    parts = [eval_loader(many_classes, local_batch_size=50, worker=runtime(rank, 3)) for rank in range(3)]
    sizes = [[len(batch.targets) for batch in part.batches()] for part in parts]
    assert sizes == [[50, 50, 20], [50, 50, 20], [50, 50, 19]]
    labels = torch.cat([batch.targets for part in parts for batch in part.batches()])
    assert labels.sort().values.tolist() == list(range(359))


def test_a_worker_may_have_nothing_to_evaluate(synthetic):
    few = replace(synthetic, num_val=2)
    assert not list(eval_loader(few, worker=runtime(2, 3)).batches())


def threads_of_data():
    return {thread for thread in threading.enumerate() if thread.name.startswith("data")}


def test_threads_change_nothing(config):
    others = threads_of_data()
    alone, helped = train_loader(config), train_loader(replace(config, num_workers=3))
    tested, tested_helped = eval_loader(config), eval_loader(replace(config, num_workers=3))
    for epoch in (0, 1):
        assert_same(alone.batches(epoch), helped.batches(epoch))
        assert_same(tested.batches(), tested_helped.batches())
    next(helped.batches(2))  # an epoch that is left in its middle leaves nothing behind
    assert_same(alone.batches(3, start_step=1), helped.batches(3, start_step=1))
    assert len(threads_of_data() - others) == 8
    for loader in (alone, helped, tested, tested_helped):
        loader.close()
    assert not threads_of_data() - others


def test_torch_keeps_its_threads_and_ours_have_one_each(config, monkeypatch):
    seen = []

    def square(view, part):
        seen.append((threading.current_thread().name, torch.get_num_threads()))
        return made_by(view, part)

    made_by = TrainView.square
    monkeypatch.setattr(TrainView, "square", square)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        loader = train_loader(replace(config, num_workers=2))
        list(loader.batches(0))
        loader.close()
        assert torch.get_num_threads() == 3
        with ThreadPoolExecutor(1) as later:
            assert later.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)
    assert {name for name, _ in seen} <= {"data_0", "data_1"}
    assert {num for _, num in seen} == {1}


@pytest.mark.parametrize("num_workers", [1, 2])
def test_random_states_are_left_as_they_were(config, num_workers):
    train, validate = (build(replace(config, num_workers=num_workers)) for build in (train_loader, eval_loader))
    before = torch.get_rng_state(), random.getstate(), repr(np.random.get_state())
    for loader in (train.batches(0), validate.batches(), train.batches(1)):
        list(loader)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), repr(np.random.get_state()))
    train.close()
    validate.close()


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:200]), "incomplete or truncated"),
        (lambda path: path.write_bytes(b""), "length"),
        (lambda path: path.write_bytes(b"<html>not found</html>"), "Unsupported image file"),
        (lambda path: path.unlink(), "No such file or directory"),
    ],
)
def test_an_image_that_cannot_be_read_is_named(config, tmp_path, num_workers, damage, reason):
    for number in range(3):
        for split in ("train", "val"):
            path = tmp_path / split / f"class{number}" / "image.JPEG"
            path.parent.mkdir(parents=True)
            path.write_bytes(encoded(picture(60, 50, number)))
    others = threads_of_data()
    loader = eval_loader(replace(config, root=str(tmp_path), num_workers=num_workers), local_batch_size=1)
    damage(tmp_path / "val" / "class1" / "image.JPEG")
    batches = loader.batches()
    next(batches)
    with pytest.raises(ImageError) as caught:
        next(batches)
    message = str(caught.value)
    assert message.startswith(f"cannot read the image {tmp_path}/val/class1/image.JPEG: ")
    assert reason in message
    assert "\n" not in message
    loader.close()  # at once, although `caught` still holds the traceback and with it the pass
    assert not threads_of_data() - others


def test_too_large_a_batch_is_refused(plain_config):
    with pytest.raises(ConfigError, match="global_batch_size=27 exceeds the 26 training images"):
        train_loader(plain_config, global_batch_size=27)


def test_a_closed_loader_says_so(config):
    loader = train_loader(config)
    loader.close()
    with pytest.raises(RuntimeError, match="closed"):
        next(loader.batches(0))


@pytest.mark.parametrize(("num_threads", "num_of_data"), [(1, 1), (3, 2)])
def test_data_take_the_cores_that_training_leaves(config, num_threads, num_of_data):
    others = threads_of_data()
    loader = train_loader(replace(config, num_workers=None), worker=runtime(num_threads=num_threads))
    next(loader.batches(0))
    assert len(threads_of_data() - others) == num_of_data
    loader.close()
    assert not threads_of_data() - others


def test_threads_end_with_a_loader_that_nobody_closed(config):
    others = threads_of_data()
    loader = train_loader(config)
    list(loader.batches(0))
    mine = threads_of_data() - others
    del loader
    gc.collect()
    for thread in mine:
        thread.join(10)
        assert not thread.is_alive()


FIRST_USE = """
import sys
from pathlib import Path
import torch
from imgnet.config import DataBackend, DataConfig, DataKind
from imgnet.data.loader import build_train_loader
from imgnet.runtime import Runtime
from tests.commands import ROOT

data = DataConfig(
    name="digits", kind=DataKind.digits, root=sys.argv[1], num_classes=10, train_px=32, eval_px=32, eval_resize_px=32,
    mean=[0.5] * 3, std=[0.25] * 3, backend=DataBackend.torchvision, num_workers=2,
)
torch.set_num_threads(2)
worker = Runtime(0, 1, 0, 1, torch.device("cpu"), 2)
loader = build_train_loader(data, seed=1, global_batch_size=8, channels_last=True, worker=worker)
next(loader.batches(0))
loader.close()
print(torch.get_num_threads())
"""


def test_training_keeps_its_threads_where_torch_has_done_nothing_before(digits_root):
    printed = subprocess.run(
        [sys.executable, "-c", FIRST_USE, digits_root], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert printed.stdout == "2\n"


def test_no_thread_waits_for_one_that_could_not_start(config, monkeypatch):
    loader = train_loader(replace(config, num_workers=3))
    start, started = threading.Thread.start, []

    def refuse_the_third(thread):
        if thread.name.startswith("data"):
            started.append(thread)
        if len(started) == 3:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse_the_third)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        next(loader.batches(0))
    for thread in started[:2]:
        thread.join(timeout=60)
        assert not thread.is_alive()


def test_batches_are_made_ahead_but_not_all_of_them(config, monkeypatch):
    asked = []
    loader = train_loader(config, global_batch_size=4)
    keys = loader._keys
    monkeypatch.setattr(loader, "_keys", lambda *where: (asked.append(key) or key for key in keys(*where)))
    batches = loader.batches(0)
    next(batches)
    assert len(asked) == 4
    next(batches)
    assert len(asked) == 5
    loader.close()


def test_synthetic_samples_depend_on_their_index_only(synthetic):
    alone = list(train_loader(synthetic).batches(0))
    parts = [list(train_loader(synthetic, worker=runtime(rank, 2)).batches(0)) for rank in range(2)]
    for step, batch in enumerate(alone):
        assert torch.equal(batch.images, torch.cat([part[step].images for part in parts]))
    indices = epoch_order(SEED, 0, 200)[:8]
    assert alone[0].targets.tolist() == (indices % NUM_CLASSES).tolist()
    again = next(batch for batch in eval_loader(synthetic, local_batch_size=359).batches())
    assert torch.equal(again.targets, torch.arange(359) % NUM_CLASSES)
    assert again.images.is_contiguous(memory_format=torch.channels_last)


def test_synthetic_classes_can_be_learned(synthetic):
    (train,) = train_loader(synthetic, global_batch_size=200).batches(0)
    (validate,) = eval_loader(synthetic, local_batch_size=359).batches()
    colors = torch.stack([train.images[train.targets == label].mean((0, 2, 3)) for label in range(NUM_CLASSES)])
    guesses = torch.cdist(validate.images.mean((2, 3)), colors).argmin(1)
    assert (guesses == validate.targets).float().mean() > 0.95


def test_synthetic_images_can_be_changed_in_place(synthetic):
    loader = train_loader(synthetic)
    expected = next(loader.batches(0)).images.clone()
    next(loader.batches(0)).images.zero_()
    assert torch.equal(next(loader.batches(0)).images, expected)


def test_digits_are_made_and_read(plain_config, tmp_path):
    chosen = replace(plain_config, kind=DataKind.digits, root=str(tmp_path / "digits"), num_classes=10, train_px=32)
    prepare(chosen)
    prepare(chosen)
    train, validate = train_loader(chosen, global_batch_size=128), eval_loader(chosen, local_batch_size=100)
    assert (train.num_samples, validate.num_samples) == (NUM_TRAIN, NUM_VAL)
    counts = torch.bincount(torch.cat([batch.targets for batch in validate.batches()]), minlength=10)
    assert counts.min() >= 34
    assert next(train.batches(0)).images.shape == (128, 3, 32, 32)


def test_a_folder_is_needed(plain_config):
    with pytest.raises(ConfigError, match=r"data\.root is not set"):
        train_loader(replace(plain_config, root=None))
    with pytest.raises(ConfigError, match="is not a folder"):
        train_loader(replace(plain_config, root="/no/such/folder"))
