import io
import json
import tarfile
import zlib

import numpy as np
import pytest
from PIL import Image

from imgnet.config import ConfigError
from imgnet.data.backends.decode import decode
from imgnet.data.sources.folder import SPLITS, FolderSource
from imgnet.data.sources.header import JpegHeader, read_header
from imgnet.data.sources.shards import (
    INDEX,
    MANIFEST,
    ShardSource,
    index_tar,
    open_index,
    read_manifest,
    shard_problems,
)
from imgnet.data.tools.sharding import Recipe, shard_folder
from imgnet.data.tools.tar import UnsafeTarError

KEEP = Recipe(max_size=None, quality=90)
NUM_CLASSES = 3


def picture(width, height, seed):
    grid = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image, kind="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for split, num in (("train", 20), ("val", 6)):
        for number in range(num):
            path = root / split / f"class{number % NUM_CLASSES}" / f"im.{number:03d}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(picture(40 + number, 50, number), "PNG" if number % 7 == 0 else "JPEG"))
    return root


@pytest.fixture
def sharded(folder, tmp_path):
    root = tmp_path / "shards"
    assert sum(shard_folder(folder, root, num_shards=3, recipe=KEEP, num_workers=2)) == 26
    return root


def test_shards_hold_the_bytes_of_the_folder_in_its_order(folder, sharded):
    manifest = read_manifest(sharded)
    assert manifest.classes == ["class0", "class1", "class2"]
    assert [len(manifest.splits[split].shards) for split in SPLITS] == [3, 1]
    for split in SPLITS:
        source, shards = FolderSource(folder, split, NUM_CLASSES), ShardSource(sharded, split, NUM_CLASSES)
        assert len(source) == len(shards) == manifest.splits[split].num_samples
        assert shards.labels.tolist() == source.labels.tolist()
        for index in range(len(source)):
            data = source.read(index)
            assert shards.read(index) == data
            assert shards.header(index, data) == source.header(index, data)
            assert f"{index:08d}_im_" in shards.describe(index)
    assert shards.describe(0).endswith(".png")
    rows = open_index(sharded / "train" / INDEX)
    assert rows["checksum"][3] == zlib.crc32(FolderSource(folder, "train", NUM_CLASSES).read(3))
    assert not list(sharded.glob("*/.*"))


def test_shards_follow_the_webdataset_convention(sharded):
    with tarfile.open(sharded / "train" / "shard-000001.tar") as archive:
        names = archive.getnames()
        keys = [name.split(".")[0] for name in names]
        assert keys[::2] == keys[1::2]
        assert {name.split(".", 1)[1] for name in names} <= {"jpg", "png", "cls"}
        assert archive.extractfile(names[1]).read() in (b"0", b"1", b"2")


def test_small_shards_are_shrunk_and_smaller_images_kept(folder, tmp_path):
    root = tmp_path / "small"
    list(shard_folder(folder, root, num_shards=1, recipe=Recipe(max_size=45, quality=80), num_workers=1))
    source, shards = FolderSource(folder, "train", NUM_CLASSES), ShardSource(root, "train", NUM_CLASSES)
    for index in range(len(source)):
        before = Image.open(io.BytesIO(source.read(index)))
        after = Image.open(io.BytesIO(shards.read(index)))
        if min(before.size) <= 45:
            assert shards.read(index) == source.read(index)
        else:
            assert after.format == "JPEG"
            assert min(after.size) == 45
            assert abs(after.width / after.height - before.width / before.height) < 0.03


def test_the_same_images_give_the_same_shards(folder, tmp_path):
    contents = []
    for num_workers in (1, 2):
        root = tmp_path / str(num_workers)
        list(shard_folder(folder, root, num_shards=3, recipe=Recipe(45, 80), num_workers=num_workers))
        contents.append({file.relative_to(root): file.read_bytes() for file in root.rglob("*") if file.is_file()})
    assert contents[0] == contents[1]
    assert len(contents[0]) == 8


def test_shrunk_images_have_the_pixels_that_are_seen_without_shrinking(tmp_path):
    turned, values = Image.Exif(), np.linspace(0, 65535, 90 * 60).reshape(60, 90).astype(np.uint16)
    turned[0x0112] = 6
    originals = {"turned": encoded(picture(90, 60, 0), exif=turned), "grey16": encoded(Image.fromarray(values), "PNG")}
    for split in ("train", "val"):
        for name, data in originals.items():
            path = tmp_path / "images" / split / name / "0.jpeg"
            path.parent.mkdir(parents=True)
            path.write_bytes(data)
    list(shard_folder(tmp_path / "images", tmp_path / "small", num_shards=1, recipe=Recipe(30, 95), num_workers=1))
    shards = ShardSource(tmp_path / "small", "train", 2)
    for place, name in enumerate(sorted(originals)):
        seen = Image.fromarray(decode(originals[name]).permute(1, 2, 0).numpy())
        shrunk = Image.open(io.BytesIO(shards.read(place)))
        assert shrunk.size == (45, 30)
        expected = np.asarray(seen.resize((45, 30), Image.Resampling.LANCZOS), dtype=float)
        assert (
            np.abs(np.asarray(shrunk, dtype=float) - expected).mean() < 6
        )  # JPEG; a turned or a white image is off by 50


def test_sharding_goes_on_where_it_was(folder, tmp_path):
    root = tmp_path / "shards"
    steps = shard_folder(folder, root, num_shards=5, recipe=KEEP, num_workers=1)
    next(steps)
    steps.close()
    first = root / "train" / "shard-000000.tar"
    before = first.stat()
    assert not (root / MANIFEST).exists()
    list(shard_folder(folder, root, num_shards=5, recipe=KEEP, num_workers=1))
    assert first.stat().st_mtime_ns == before.st_mtime_ns
    assert shard_problems(root, NUM_CLASSES) == []
    assert sum(shard_folder(folder, root, num_shards=5, recipe=KEEP, num_workers=1)) == 26  # nothing to do
    with pytest.raises(ConfigError, match=r"begun with other settings: num_shards=4 \(was 5\)"):
        list(shard_folder(folder, root, num_shards=4, recipe=KEEP, num_workers=1))


def test_a_folder_of_other_things_is_left_alone(folder, tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match="is not empty and holds no shards"):
        list(shard_folder(folder, tmp_path, num_shards=1, recipe=KEEP, num_workers=1))


def test_what_is_missing_or_cut_is_named(sharded):
    assert shard_problems(sharded, NUM_CLASSES) == []
    assert shard_problems(sharded, 10) == [f"{sharded} has 3 classes, but data.num_classes=10"]
    shard = sharded / "train" / "shard-000002.tar"
    size = shard.stat().st_size
    with shard.open("r+b") as file:
        file.truncate(size - 1)
    expected = f"{shard} has {size - 1} bytes; the manifest says {size} bytes"
    with pytest.raises(ConfigError) as caught:
        ShardSource(sharded, "train", NUM_CLASSES)
    assert caught.value.problems == [expected]
    (sharded / MANIFEST).unlink()
    (line,) = shard_problems(sharded, NUM_CLASSES)
    assert "holds no manifest.json" in line
    assert "imgnet data shard" in line


@pytest.mark.parametrize("wrong", [{"splits": []}, {"classes": 3}, {"splits": {"train": 1}}, {"splits": None}])
def test_a_manifest_of_another_kind_is_refused_in_one_line(sharded, wrong):
    manifest = sharded / MANIFEST
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | wrong))
    (line,) = shard_problems(sharded, NUM_CLASSES)
    assert line.startswith(f"{manifest} cannot be read: ")


def test_a_manifest_cannot_name_files_elsewhere(sharded):
    path = sharded / MANIFEST
    path.write_text(path.read_text().replace("shard-000000.tar", "../../etc/passwd"))
    (line,) = shard_problems(sharded, NUM_CLASSES)
    assert "names a file outside its folder" in line


def tar_of(path, *members):
    with tarfile.open(path, "w") as archive:
        for name, data, kind, link in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.size = kind, link, len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def plain(name, data=b"x"):
    return name, data, tarfile.REGTYPE, ""


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (plain("../../.bashrc"), "leaves its folder"),
        (plain("a/../../b.jpg"), "leaves its folder"),
        (plain("/etc/passwd"), "absolute"),
        (("a.jpg", b"", tarfile.SYMTYPE, "/etc/passwd"), "is a link to '/etc/passwd'"),
        (("a.jpg", b"", tarfile.LNKTYPE, "b.jpg"), "is a link"),
        (("a.jpg", b"", tarfile.CHRTYPE, ""), "neither a plain file nor a folder"),
        (("a.jpg", b"", tarfile.FIFOTYPE, ""), "neither a plain file nor a folder"),
    ],
)
def test_hostile_shards_are_refused(tmp_path, member, reason):
    path = tar_of(tmp_path / "hostile.tar", member)
    with pytest.raises(UnsafeTarError, match=reason) as caught:
        index_tar(path, 0)
    assert str(path) in str(caught.value)
    assert repr(member[0]) in str(caught.value)


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([plain("a.jpg"), plain("b.jpg")], "has no a.cls"),
        ([plain("a.jpg")], "ends in the middle of a sample"),
        ([plain("a.jpg"), plain("b.cls", b"1")], "keys must agree"),
        ([plain("a.jpg"), plain("a.cls", b"cat")], "not the number of a class"),
    ],
)
def test_shards_without_classes_are_refused(tmp_path, members, reason):
    with pytest.raises(UnsafeTarError, match=reason):
        index_tar(tar_of(tmp_path / "odd.tar", *members), 0)


def test_what_is_no_tar_file_is_refused(tmp_path):
    path = tmp_path / "page.tar"
    path.write_bytes(b"<html>" * 1000)
    with pytest.raises(UnsafeTarError, match="no readable tar file"):
        index_tar(path, 0)


def test_shards_from_elsewhere_may_hold_more_than_images(tmp_path):
    jpeg = encoded(picture(30, 20, 0))
    path = tar_of(tmp_path / "web.tar", plain("x/a.json", b"{}"), plain("x/a.cls", b" 7\n"), plain("x/a.jpeg", jpeg))
    (row,) = index_tar(path, 4)
    assert (row["label"], row["width"], row["height"], row["shard"], row["length"]) == (7, 30, 20, 4, len(jpeg))
    assert path.read_bytes()[row["offset"] :][: len(jpeg)] == jpeg


def test_headers_of_ordinary_jpegs_are_read():
    image = picture(41, 30, 0)
    assert read_header(encoded(image)) == JpegHeader(41, 30)
    assert read_header(encoded(image.convert("L"))) == JpegHeader(41, 30)
    assert read_header(encoded(image, progressive=True) + b"\0" * 8) == JpegHeader(41, 30)
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "a camera", 6  # held upright, which turns no pixel in the file
    assert read_header(encoded(image, exif=exif)) == JpegHeader(41, 30)


def test_everything_else_is_left_to_the_careful_decoder():
    image = picture(41, 30, 0)
    data = encoded(image)
    for odd in (
        encoded(image, "PNG"),
        encoded(image.convert("CMYK")),
        data[:-100],
        data[:3],
        b"",
        b"\xff\xd8\xff\xd9",
    ):
        assert read_header(odd) is None


def test_many_shards_do_not_use_up_the_files_of_a_process(sharded, folder, monkeypatch):
    monkeypatch.setattr("imgnet.data.sources.shards._NUM_OPEN_FILES", 1)
    shards, source = ShardSource(sharded, "train", NUM_CLASSES), FolderSource(folder, "train", NUM_CLASSES)
    assert [shards.read(index) for index in range(20)] == [source.read(index) for index in range(20)]
