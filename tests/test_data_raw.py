"""Shards of raw pixels: what is in them, that nobody sees another image, and what is no raw pixel."""

import io
import json
import logging
import multiprocessing
import os
import random
import signal
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from imgnet.cli import app
from imgnet.config import ConfigError, DataBackend, DataConfig, DataKind, OnBadImage
from imgnet.data.backends.backend import BatchKey, Finisher
from imgnet.data.backends.bad_images import BadImages
from imgnet.data.backends.decode import DecodedParts, decode
from imgnet.data.backends.pool import PoolBackend
from imgnet.data.loader import build_eval_loader, build_train_loader, prepare
from imgnet.data.sampling.order import epoch_order
from imgnet.data.sampling.view import EvalView, TrainView
from imgnet.data.sources.folder import SPLITS, FolderSource
from imgnet.data.sources.header import PpmHeader, as_ppm, read_ppm_header
from imgnet.data.sources.raw import RawPixels
from imgnet.data.sources.shards import INDEX, MANIFEST, ShardSource, index_tar, open_index, read_manifest, record_of
from imgnet.data.sources.source import ImageError
from imgnet.data.staging import stage
from imgnet.data.tools.sharding import Recipe, shard_folder
from imgnet.data.tools.synthesize import picture
from imgnet.data.tools.tar import UnsafeTarError
from imgnet.runtime import Runtime
from tests.composing import composed
from tests.test_data_backends import BACKENDS, MEAN, STD, encoded, needs_dali, oddity
from tests.test_data_shards import plain, tar_of
from tests.test_data_staging import checksums, flip_byte
from tests.test_published import carry_out

CPU = torch.device("cpu")
NUM_CLASSES, NUM_TRAIN, NUM_VAL, SEED = 3, 21, 7, 7
SMALL, WHOLE = Recipe(64, None, "raw"), Recipe(1000, None, "raw")
KEEP = Recipe(None, None)


def imgnet(*arguments):
    return CliRunner().invoke(app, ["data", *map(str, arguments)])


def shards(folder, root, recipe, num_shards=3):
    assert sum(shard_folder(folder, root, num_shards=num_shards, recipe=recipe, num_workers=1)) > 0
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images with shorter sides of 40 to 140 pixels, some grey, CMYK, PNG, turned by EXIF data, or progressive."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for split, num in (("train", NUM_TRAIN), ("val", NUM_VAL)):
        for number in range(num):
            path = root / split / f"class{number % NUM_CLASSES}" / f"{number:03d}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            width, height = generator.integers(40, 140, 2).tolist()
            path.write_bytes(oddity(picture((1, number), width, height), number))
    return root


@pytest.fixture(scope="module")
def encoded_root(folder, tmp_path_factory):
    """The files themselves in shards."""
    return shards(folder, tmp_path_factory.mktemp("encoded") / "shards", KEEP)


@pytest.fixture(scope="module")
def whole_root(folder, tmp_path_factory):
    """The pixels of the same images, not shrunk."""
    return shards(folder, tmp_path_factory.mktemp("whole") / "shards", WHOLE)


@pytest.fixture
def small_root(folder, tmp_path):
    """Shrunk pixels, for tests that damage them."""
    return shards(folder, tmp_path / "shards", SMALL)


@pytest.fixture
def config(whole_root):
    return DataConfig(
        name="images",
        kind=DataKind.shards,
        backend=DataBackend.torchvision,
        root=str(whole_root),
        num_classes=NUM_CLASSES,
        train_px=32,
        eval_px=32,
        eval_resize_px=40,
        mean=MEAN,
        std=STD,
        num_workers=0,
    )


def train_batches(config, epoch, start_step=0, rank=0, world_size=1):
    worker = Runtime(rank, world_size, rank, world_size, CPU, 2)
    loader = build_train_loader(config, seed=SEED, global_batch_size=8, channels_last=True, worker=worker)
    batches = list(loader.batches(epoch, start_step))
    loader.close()
    return batches


def eval_batches(config):
    loader = build_eval_loader(config, local_batch_size=4, channels_last=True, worker=Runtime(0, 1, 0, 1, CPU, 2))
    batches = list(loader.batches())
    loader.close()
    return batches


def assert_same(batches, others):
    assert len(batches) == len(others) > 0
    for batch, other in zip(batches, others, strict=True):
        assert torch.equal(batch.targets, other.targets)
        assert torch.equal(batch.images, other.images)


def test_records_are_the_pixels_that_decoding_gives(folder, small_root):
    assert read_manifest(small_root).format == "raw"
    num_shrunk = 0
    for split in SPLITS:
        source, raw = FolderSource(folder, split, NUM_CLASSES), ShardSource(small_root, split, NUM_CLASSES)
        assert raw.labels.tolist() == source.labels.tolist()
        for index in range(len(source)):
            image = Image.fromarray(decode(source.read(index)).permute(1, 2, 0).numpy())
            if min(image.size) > 64:
                scale, num_shrunk = 64 / min(image.size), num_shrunk + 1
                size = round(image.width * scale), round(image.height * scale)
                image = image.resize(size, Image.Resampling.LANCZOS)
            assert np.array_equal(decode(raw.read(index)).permute(1, 2, 0), np.asarray(image))
            assert raw.pixels.sizes(np.array([index])).tolist() == [list(image.size)]
            assert raw.describe(index).endswith(".ppm")
    assert 5 < num_shrunk < NUM_TRAIN + NUM_VAL - 5
    with Image.open(io.BytesIO(raw.read(0))) as seen:  # what others see in the record
        assert np.array_equal(np.asarray(seen), decode(raw.read(0)).permute(1, 2, 0))


def test_parts_of_a_record_are_read_alone(whole_root):
    source, generator = ShardSource(whole_root, "train", NUM_CLASSES), np.random.default_rng(0)
    for index in range(NUM_TRAIN):
        image = decode(source.read(index)).permute(1, 2, 0).numpy()
        height, width, _ = image.shape
        left, top = generator.integers(0, [width, height]).tolist()
        wide, high = generator.integers(1, [width - left + 1, height - top + 1]).tolist()
        part = source.pixels.part(index, [left, top, wide, high])
        assert part.flags.c_contiguous
        assert part.flags.writeable
        assert np.array_equal(part, image[top : top + high, left : left + wide])


@BACKENDS
def test_batches_are_those_of_the_encoded_images(config, encoded_root, backend):
    """Order, crops, flips and pixels, to the bit, in both splits."""
    raw, encoded_ones = replace(config, backend=backend), replace(config, root=str(encoded_root))
    for epoch in (0, 1):
        assert_same(train_batches(raw, epoch), train_batches(encoded_ones, epoch))
    assert_same(eval_batches(raw), eval_batches(encoded_ones))
    assert_same(train_batches(raw, 2, rank=1, world_size=2), train_batches(encoded_ones, 2, rank=1, world_size=2))
    assert_same(train_batches(raw, 3, start_step=1), train_batches(encoded_ones, 3)[1:])
    assert_same(train_batches(replace(raw, num_workers=2), 4), train_batches(encoded_ones, 4))


@BACKENDS
def test_a_pass_may_be_left_in_its_middle(config, backend):
    worker = Runtime(0, 1, 0, 1, CPU, 2)
    chosen = replace(config, backend=backend)
    loader = build_train_loader(chosen, seed=SEED, global_batch_size=4, channels_last=True, worker=worker)
    first = next(loader.batches(0))
    assert_same([next(loader.batches(0))], [first])
    loader.close()
    with pytest.raises(RuntimeError, match="closed"):
        next(loader.batches(0))


@needs_dali
@pytest.mark.parametrize("split", SPLITS)
def test_the_graph_of_the_gpu_cuts_the_same(small_root, split):
    """One record is damaged: what stands in for it is fed to DALI like the others, and left out at the end."""
    from imgnet.data.backends.dali import DaliBackend

    change(small_root, split, 2, length=5)
    view = TrainView(32, SEED, [0.08, 1.0], [0.75, 4 / 3], 0.5) if split == "train" else EvalView(32, 40)
    source = ShardSource(small_root, split, NUM_CLASSES)
    finish = Finisher(
        source.labels,
        BadImages(OnBadImage.skip, 1, split),
        [0, 0, 0],
        [1 / 255] * 3,
        device=CPU,
        channels_last=True,
        dtype=torch.float32,
    )
    reference = PoolBackend(source, view, finish, partial(DecodedParts, source, view), num_threads=1)
    graph = DaliBackend(source, view, finish, num_threads=1, device=CPU)
    order = epoch_order(SEED, 0, len(source))
    keys = [BatchKey(0, order[at : at + 4]) for at in range(0, len(order), 4)]
    for expected, batch in zip(reference.batches(keys), graph.batches(keys), strict=True):
        assert (expected.images - batch.images).abs().mean() < 0.5
        assert torch.equal(expected.targets, batch.targets)
    graph.close()
    reference.close()


def change(root, split, index, **fields):
    """Write something else into a row of the index, and into the manifest what is said of the index then."""
    rows = np.array(open_index(root / split / INDEX))
    for name, value in fields.items():
        rows[name][index] = value
    np.save(root / split / INDEX, rows)
    manifest = json.loads((root / MANIFEST).read_text())
    manifest["splits"][split]["index"] = vars(record_of(root / split / INDEX))
    (root / MANIFEST).write_text(json.dumps(manifest))


def damages():
    """What may be wrong with record 4, and a part of the line that is shown."""
    yield "length", lambda root, row: {"length": row["length"] - 1}, "raw pixels, which the index says"
    yield "empty", lambda root, row: {"width": 0}, "bytes are not 0 x"
    yield "turned", lambda root, row: {"width": row["height"], "height": row["width"]}, "its header is not that of"
    yield "offset", lambda root, row: {"offset": row["offset"] + 1}, "its header is not that of"
    yield "outside", lambda root, row: {"offset": 2**63 + 5}, "the index says bytes 9223372036854775813 to"
    yield "shard", lambda root, row: {"shard": 77}, "of shard 77, which has fewer"


@BACKENDS
@pytest.mark.parametrize("damage", [damage[1:] for damage in damages()], ids=[damage[0] for damage in damages()])
def test_a_record_that_is_not_what_the_index_says_is_a_bad_image(config, small_root, backend, damage, caplog):
    fields, reason = damage
    row = open_index(small_root / "train" / INDEX)[4]
    assert row["width"] != row["height"]
    change(small_root, "train", 4, **fields(small_root, row))
    strict = replace(config, backend=backend, root=str(small_root))
    with pytest.raises(ImageError, match=r"^cannot read the image .*/train/?.*: ") as caught:
        [train_batches(strict, epoch) for epoch in range(3)]
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    with caplog.at_level(logging.WARNING, "imgnet"):
        skipping = replace(strict, on_bad_image=OnBadImage.skip)
        assert [len(batch.targets) for epoch in range(3) for batch in train_batches(skipping, epoch)] == [8] * 6
    assert reason in caplog.text
    with pytest.raises(ImageError, match=r"more than data\.max_bad_images=0 images"):
        [train_batches(replace(skipping, max_bad_images=0), epoch) for epoch in range(3)]
    done = imgnet("verify", small_root, "--workers", 1)
    assert done.exit_code == 1
    assert done.stdout.endswith("1 problems\n"), done.stdout


@given(
    fields=st.fixed_dictionaries(
        {},
        optional={
            "offset": st.one_of(st.integers(0, 30_000), st.integers(0, 2**64 - 1)),
            "length": st.one_of(st.integers(0, 30_000), st.integers(0, 2**32 - 1)),
            "width": st.integers(0, 2**16 - 1),
            "height": st.integers(0, 2**16 - 1),
            "shard": st.integers(0, 2**32 - 1),
        },
    ),
    where=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_no_row_of_an_index_gives_other_pixels(whole_root, fields, where):
    """Whatever it says, it is told as a failure to read, or it is the row that was written."""
    source = ShardSource(whole_root, "val", NUM_CLASSES)
    rows = np.array(open_index(whole_root / "val" / INDEX))
    written = rows[0].copy()
    for name, value in fields.items():
        rows[name][0] = value
    source._rows = rows
    pixels = RawPixels(rows, source._first_bytes)
    width, height = pixels.sizes(np.array([0]))[0].tolist()
    box = [int(where[0] * (width - 1)), int(where[1] * (height - 1)), 1, 1]
    try:
        part = pixels.part(0, box)
    except OSError:
        assert rows[0] != written
        return
    assert rows[0] == written
    assert np.array_equal(part[0, 0], decode(source.read(0))[:, box[1], box[0]])


@BACKENDS
def test_a_shard_that_ends_too_early_is_refused_and_named(config, small_root, backend):
    chosen = replace(config, backend=backend, root=str(small_root), on_bad_image=OnBadImage.skip)
    worker = Runtime(0, 1, 0, 1, CPU, 2)
    loader = build_eval_loader(chosen, local_batch_size=4, channels_last=True, worker=worker)
    shard = small_root / "val" / "shard-000000.tar"
    os.truncate(shard, int(open_index(small_root / "val" / INDEX)["offset"][-1]) + 100)  # while it is open
    assert sum(len(batch.targets) for batch in loader.batches()) == NUM_VAL - 1
    loader.close()
    with pytest.raises(ConfigError, match=r"val/shard-000000.tar has .* bytes; the manifest says"):
        eval_batches(chosen)


@BACKENDS
def test_skipped_records_are_replaced_alike(config, folder, small_root, backend, tmp_path):
    """As in shards of JPEGs with the same image damaged."""
    damaged = replace(config, on_bad_image=OnBadImage.skip, root=str(shards(folder, tmp_path / "whole", WHOLE)))
    jpegs = replace(damaged, root=str(shards(folder, tmp_path / "jpegs", KEEP)))
    for chosen in (damaged, jpegs):
        for split in SPLITS:
            change(tmp_path / chosen.root, split, 4, length=7)
    for epoch in range(2):
        assert_same(train_batches(replace(damaged, backend=backend), epoch), train_batches(jpegs, epoch))
    assert_same(eval_batches(replace(damaged, backend=backend)), eval_batches(jpegs))


def test_staged_raw_pixels_are_the_same_and_whole(config, small_root, tmp_path):
    chosen = replace(config, root=str(small_root))
    staged = replace(chosen, stage_to=str(tmp_path / "ssd"))
    prepare(staged)
    assert_same(train_batches(staged, 0), train_batches(chosen, 0))
    flip_byte(small_root / "train" / "shard-000001.tar")
    with pytest.raises(ConfigError, match=r"shard-000001\.tar is damaged"):
        stage(small_root, str(tmp_path / "other"))


def test_raw_pixels_are_verified(small_root):
    assert imgnet("verify", small_root, "--workers", 1).stdout == f"{small_root} is whole\n"
    flip_byte(small_root / "train" / "shard-000001.tar")
    done = imgnet("verify", small_root, "--workers", 1)
    assert done.exit_code == 1
    assert f"{small_root}/train/shard-000001.tar differs from its checksum in manifest.json" in done.stdout
    assert ".ppm: the bytes differ from their checksum" in done.stdout


def test_the_command_says_what_it_needs(folder, tmp_path):
    command = ["shard", folder, tmp_path / "shards", "--num-shards", 2, "--workers", 1]
    done = imgnet(*command, "--format", "raw")
    assert (done.exit_code, done.stderr) == (
        2,
        "--format raw without --max-size: pixels that are not shrunk take several times the space of JPEGs; "
        "add a size, such as --max-size 256\n",
    )
    done = imgnet(*command, "--format", "raw", "--max-size", 64, "--quality", 80)
    assert done.exit_code == 2
    assert done.stderr == "--quality 80 is for --format jpeg; raw pixels lose none, so leave it out\n"
    assert imgnet(*command, "--format", "png").exit_code == 2
    assert not (tmp_path / "shards").exists()
    done = imgnet(*command, "--format", "raw", "--max-size", 64)
    assert done.exit_code == 0, done.stderr
    assert json.loads((tmp_path / "shards" / MANIFEST).read_text())["made_with"] == {
        "max_size": 64,
        "quality": None,
        "format": "raw",
    }
    done = imgnet(*command, "--max-size", 64)
    assert done.exit_code == 2
    assert "begun with other settings: quality=90 (was None), format=jpeg (was raw); name a new folder" in done.stderr


def test_a_plan_of_a_version_without_formats_goes_on(folder, tmp_path):
    root = shards(folder, tmp_path / "shards", KEEP)
    plan = json.loads((root / "plan.json").read_text())
    del plan["format"]
    (root / "plan.json").write_text(json.dumps(plan))
    assert shards(folder, root, KEEP) == root


def test_formats_that_are_not_known_are_refused(small_root, encoded_root):
    """As the first version refused this one, which asked for the number 1."""
    numbers = {root: json.loads((root / MANIFEST).read_text())["format"] for root in (small_root, encoded_root)}
    assert list(numbers.values()) == [2, 1]
    manifest = json.loads((small_root / MANIFEST).read_text()) | {"format": 3}
    (small_root / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ConfigError) as caught:
        ShardSource(small_root, "train", NUM_CLASSES)
    assert str(caught.value) == (
        f"{small_root}/{MANIFEST} is of format 3; known are 1 (jpeg) and 2 (raw): "
        "write the shards again, or update imgnet"
    )


def test_only_whole_records_of_the_one_form_are_raw_pixels(tmp_path):
    data = as_ppm(3, 2, bytes(18))
    assert read_ppm_header(data) == PpmHeader(3, 2, len(data) - 18)
    odd = (
        data[:-1],
        data + b"x",
        b"P6\n# ours\n3 2\n255\n" + bytes(18),
        b"P6\n0 2\n255\n",
        as_ppm(65536, 1, bytes(196608)),
    )
    for number, other in enumerate((*odd, b"", encoded(picture(1, 30, 20)))):
        assert read_ppm_header(other) is None
        path = tar_of(tmp_path / f"{number}.tar", plain("a.ppm", other), plain("a.cls", b"1"))
        with pytest.raises(UnsafeTarError, match=r"tar: a holds no raw pixels, 1 to 65,535 to a side"):
            index_tar(path, 0, "raw")


def test_an_image_that_cannot_be_decoded_ends_the_command_and_is_named(tmp_path):
    for split in SPLITS:
        (tmp_path / "images" / split / "a").mkdir(parents=True)
        (tmp_path / "images" / split / "a" / "0.jpeg").write_bytes(encoded(picture(1, 80, 60))[:400])
    command = ["shard", tmp_path / "images", tmp_path / "shards", "--num-shards", 1, "--workers", 1]
    done = imgnet(*command, "--format", "raw", "--max-size", 50)
    assert done.exit_code == 2
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("sharding")]
    assert line.startswith(f"cannot read the image {tmp_path}/images/train/a/0.jpeg: ")
    assert not (tmp_path / "shards" / MANIFEST).exists()


def test_a_command_killed_again_and_again_ends_whole(folder, small_root, tmp_path):
    context, generator, unfinished = multiprocessing.get_context("fork"), random.Random(0), 0
    root = tmp_path / "killed"
    for _ in range(10):
        process = context.Process(target=shards, args=(folder, root, SMALL))
        process.start()
        # A random moment is what the test is about: some land before the first byte, some after the last.
        time.sleep(generator.uniform(0, 0.04))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        if (root / MANIFEST).exists():
            assert checksums(root) == checksums(small_root)
        else:
            unfinished += 1
            with pytest.raises(ConfigError, match="so no whole shards"):
                ShardSource(root, "train", NUM_CLASSES)
    assert unfinished > 0
    assert checksums(shards(folder, root, SMALL)) == checksums(small_root)
    assert not list(root.glob("*/.*"))


@BACKENDS
def test_a_run_trains_on_raw_pixels_as_on_jpegs(whole_root, encoded_root, tmp_path, backend):
    """The same losses and accuracies, to the last digit that is written."""
    rows = []
    for root in (whole_root, encoded_root):
        config = composed(
            "data=digits", "data.kind=shards", f"data.root={root}", f"data.backend={backend.name}",
            "data.num_classes=3", "model=small_cnn", "precision=fp32", "global_batch_size=8", "epochs=2",
            "resume=none", "topology=allreduce", "cluster.accelerator=cpu", "cluster.cpu_workers_per_node=1",
            "optimizer.warmup_epochs=0", "seed=2",
        )  # fmt: skip
        carry_out(config, tmp_path / root.parent.name)
        rows.append(pd.read_csv(tmp_path / root.parent.name / "metrics.csv"))
    for column in ("train_loss", "val_loss", "val_acc1"):
        assert len(rows[0][column]) == 2
        assert rows[0][column].tolist() == rows[1][column].tolist(), column
