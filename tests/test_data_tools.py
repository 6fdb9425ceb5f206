"""The commands ``imgnet data ...``, as they are typed."""

import io
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from typer.testing import CliRunner

from imgnet.cli import app
from imgnet.data.sources.folder import SPLITS, FolderSource
from imgnet.data.sources.shards import MANIFEST, ShardSource, shard_problems
from imgnet.data.tools.verify import JOURNAL, JOURNAL_S, open_all, verify
from tests.commands import ROOT, environment
from tests.test_data_shards import plain, tar_of
from tests.test_data_staging import checksums, flip_byte

WNIDS = ["n01440764", "n01443537", "n02119789"]
GROUND_TRUTH = [3, 1, 2, 1]


def imgnet(*arguments):
    """The command in this process, where torch is imported already; some are typed for real below."""
    return CliRunner().invoke(app, ["data", *map(str, arguments)])


def jpeg(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG")
    return out.getvalue()


@pytest.fixture
def archives(tmp_path):
    """ImageNet in small: tars in a tar, images without classes, and a devkit with a tree of synsets."""
    folder = tmp_path / "archives"
    folder.mkdir()
    classes = []
    for number, wnid in enumerate(WNIDS):
        images = [plain(f"{wnid}_{image}.JPEG", jpeg(10 * number + image)) for image in range(4)]
        classes.append(plain(f"{wnid}.tar", tar_of(tmp_path / "class.tar", *images).read_bytes()))
    tar_of(folder / "ILSVRC2012_img_train.tar", *classes)
    val = [plain(f"ILSVRC2012_val_{number:08d}.JPEG", jpeg(100 + number)) for number in range(1, 5)]
    tar_of(folder / "ILSVRC2012_img_val.tar", *val)
    write_devkit(folder / "ILSVRC2012_devkit_t12.tar.gz")
    return folder


def write_devkit(path):
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    kinds += [("children", "O"), ("wordnet_height", "O"), ("num_train_images", "O")]
    leaves = [(number, wnid, f"word {number}, other", "", 0, [], 0, 4) for number, wnid in enumerate(WNIDS, 1)]
    synsets = np.array([*leaves, (4, "n00001740", "entity", "", 3, [1, 2, 3], 1, 0)], dtype=kinds)
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets.reshape(-1, 1)})
    truth = "".join(f"{number}\n" for number in GROUND_TRUTH).encode()
    with tarfile.open(path, "w:gz") as archive:
        for name, data in (("data/meta.mat", meta.getvalue()), ("data/ILSVRC2012_validation_ground_truth.txt", truth)):
            member = tarfile.TarInfo(f"ILSVRC2012_devkit_t12/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def test_archives_become_the_layout_that_torchvision_reads(archives, tmp_path):
    out = tmp_path / "Imagenet"
    done = imgnet("prepare", "--archives", archives, "--out", out, "--workers", 2)
    assert done.exit_code == 0, done.stderr
    assert sorted(path.name for path in out.iterdir()) == ["dev", "meta.bin", "train", "val"]
    assert [path.name for path in sorted((out / "train").iterdir())] == WNIDS
    assert (out / "train" / WNIDS[1] / f"{WNIDS[1]}_2.JPEG").read_bytes() == jpeg(12)
    for number, label in enumerate(GROUND_TRUTH, 1):
        path = out / "val" / WNIDS[label - 1] / f"ILSVRC2012_val_{number:08d}.JPEG"
        assert path.read_bytes() == jpeg(100 + number)
    names, val_wnids = torch.load(out / "meta.bin", weights_only=True)
    assert names[WNIDS[0]] == ("word 1", "other")
    assert val_wnids == [WNIDS[label - 1] for label in GROUND_TRUTH]
    assert (out / "dev" / "ILSVRC2012_devkit_t12" / "data" / "meta.mat").is_file()
    assert len(FolderSource(out, "train", 3)) == 12
    assert imgnet("verify", out, "--workers", 1).exit_code == 0

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.JPEG")}
    lost = out / "train" / WNIDS[0]
    lost.rename(out / "train" / f".{WNIDS[0]}")  # as if the command had been killed inside this class
    (out / "train" / f".{WNIDS[0]}" / f"{WNIDS[0]}_3.JPEG").unlink()
    assert imgnet("prepare", "--archives", archives, "--out", out, "--workers", 1).exit_code == 0
    assert (lost / f"{WNIDS[0]}_3.JPEG").read_bytes() == jpeg(3)
    after = {path: path.stat().st_mtime_ns for path in out.rglob("*.JPEG")}
    assert {path for path in before if before[path] != after[path]} == set(lost.iterdir())


def test_missing_archives_are_named(tmp_path):
    command = [sys.executable, "-m", "imgnet", "data", "prepare", "--archives", tmp_path, "--out", tmp_path / "out"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith(f"{tmp_path}/ILSVRC2012_img_train.tar is not there")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("archive", ["ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"])
def test_hostile_archives_are_refused(archives, tmp_path, archive):
    tar_of(archives / archive, plain("../../outside.JPEG"))
    done = imgnet("prepare", "--archives", archives, "--out", tmp_path / "out" / "Imagenet", "--workers", 1)
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1].endswith("its member '../../outside.JPEG' leaves its folder")
    assert not list(tmp_path.rglob("outside.JPEG"))


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("number", [0, 1])
def test_a_damaged_header_is_not_taken_for_the_end_of_a_class(archives, tmp_path, number):
    path = archives / "ILSVRC2012_img_train.tar"
    content = bytearray(path.read_bytes())
    header = content.index(f"{WNIDS[0]}_{number}.JPEG".encode())
    content[header : header + 512] = b"x" * 512
    path.write_bytes(content)
    done = imgnet("prepare", "--archives", archives, "--out", tmp_path / "out", "--workers", 1)
    assert done.exit_code == 2
    assert f"{path}: {WNIDS[0]}.tar is no readable tar file: " in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out" / "train" / WNIDS[0]).exists()


@pytest.mark.parametrize(
    ("archive", "damage"),
    [
        ("ILSVRC2012_img_val.tar", cut),
        ("ILSVRC2012_devkit_t12.tar.gz", cut),
        ("ILSVRC2012_devkit_t12.tar.gz", lambda path: path.write_text("<html>log in</html>")),
    ],
)
def test_a_download_that_is_cut_short_or_something_else_is_named(archives, tmp_path, archive, damage):
    damage(archives / archive)
    done = imgnet("prepare", "--archives", archives, "--out", tmp_path / "out", "--workers", 1)
    assert done.exit_code == 2
    assert f"{archives / archive} is no readable tar file: " in done.stderr.splitlines()[-1]


def test_archives_of_other_classes_are_refused(archives, tmp_path):
    tar_of(archives / "ILSVRC2012_img_train.tar", plain("n99999999.tar"))
    done = imgnet("prepare", "--archives", archives, "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert "and the devkit differ in 4 classes, such as n01440764" in done.stderr


def test_from_drawing_to_verified_shards(tmp_path):
    drawn, shards = tmp_path / "drawn", tmp_path / "shards"
    size = ["--width", 500, "--height", 375]
    done = imgnet("synthesize", drawn, "--num-classes", 2, "--per-class", 3, *size, "--workers", 1)
    assert done.exit_code == 0, done.stderr
    weights = [path.stat().st_size for path in drawn.rglob("*.JPEG")]
    assert len(weights) == 8
    assert 90_000 < np.mean(weights) < 130_000
    done = imgnet("shard", drawn, shards, "--num-shards", 2, "--workers", 2)
    assert done.exit_code == 0, done.stderr
    assert f"data.kind=shards data.root={shards}" in done.stdout
    done = imgnet("verify", shards, "--workers", 1)
    assert (done.exit_code, done.stdout) == (0, f"{shards} is whole\n")

    flip_byte(shards / "train" / "shard-000001.tar")
    done = imgnet("verify", shards, "--workers", 1)
    assert done.exit_code == 1
    assert f"{shards}/train/shard-000001.tar differs from its checksum in manifest.json" in done.stdout
    assert "the bytes differ from their checksum" in done.stdout
    assert not (shards / ".verify.jsonl").exists()


def test_verifying_lists_what_is_wrong_with_a_folder(tmp_path):
    for split in SPLITS:
        for label in ("a", "b"):
            (tmp_path / split / label).mkdir(parents=True)
            (tmp_path / split / label / "0.JPEG").write_bytes(jpeg(0))
    (tmp_path / "train" / "a" / "0.JPEG").write_bytes(jpeg(0)[:300])
    (tmp_path / "val" / "b" / "0.JPEG").write_bytes(b"")
    done = imgnet("verify", tmp_path, "--workers", 1)
    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith(f"cannot read the image {tmp_path}/train/a/0.JPEG: ")
    assert lines[1].startswith(f"cannot read the image {tmp_path}/val/b/0.JPEG: ")
    (tmp_path / "val" / "b" / "0.JPEG").unlink()
    done = imgnet("verify", tmp_path, "--workers", 1)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"{tmp_path}/val has 1 classes without an image")


def test_a_killed_command_goes_on(tmp_path):
    drawn = tmp_path / "drawn"
    arguments = ["synthesize", str(drawn), "--num-classes", "12", "--per-class", "20", "--workers", "2"]
    arguments += ["--width", "120", "--height", "90"]
    process = subprocess.Popen(
        [sys.executable, "-m", "imgnet", "data", *arguments],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for(lambda: list(drawn.glob("train/n*")))
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait_for(lambda: not any(Path(f"/proc/{child}/fd").exists() for child in children))
    first = next(drawn.glob("train/n*"))
    before = first.stat().st_mtime_ns
    assert imgnet(*arguments).exit_code == 0
    assert first.stat().st_mtime_ns == before
    imgnet("synthesize", tmp_path / "other", *arguments[2:])
    assert checksums(drawn) == checksums(tmp_path / "other")


def test_a_verification_that_was_ended_goes_on(tmp_path):
    for split in SPLITS:
        (tmp_path / split / "a").mkdir(parents=True)
        (tmp_path / split / "a" / "0.JPEG").write_bytes(jpeg(0)[: 300 if split == "train" else None])
    steps = verify(tmp_path, open_all(tmp_path), 1)
    assert [len(next(steps).problems) for _ in range(2)] == [0, 1]
    steps.close()
    (tmp_path / "train" / "a" / "0.JPEG").write_bytes(jpeg(0))  # looked at already, and not looked at again
    steps = list(verify(tmp_path, open_all(tmp_path), 1))
    assert sum(step.num_images for step in steps) == 2
    assert sum(len(step.problems) for step in steps) == 1
    assert not any(step.problems for step in verify(tmp_path, open_all(tmp_path), 1))


def test_a_journal_of_another_day_counts_no_longer(tmp_path):
    for split in SPLITS:
        (tmp_path / split / "a").mkdir(parents=True)
        (tmp_path / split / "a" / "0.JPEG").write_bytes(jpeg(0))
    steps = verify(tmp_path, open_all(tmp_path), 1)
    assert [next(steps).num_images for _ in range(2)] == [0, 1]
    steps.close()
    (tmp_path / "train" / "a" / "0.JPEG").write_bytes(jpeg(0)[:300])
    long_ago = time.time() - JOURNAL_S
    os.utime(tmp_path / JOURNAL, (long_ago, long_ago))
    assert sum(len(step.problems) for step in verify(tmp_path, open_all(tmp_path), 1)) == 1


def likeness_of_drawn(folder, likeness):
    """How much higher pictures of a class correlate than those of two classes, the mean over pairs."""
    size = ["--width", 64, "--height", 48, "--likeness", likeness]
    done = imgnet("synthesize", folder, "--num-classes", 4, "--per-class", 10, *size, "--workers", 1)
    assert done.exit_code == 0, done.stderr
    drawn = [Image.open(path) for part in sorted((folder / "train").iterdir()) for path in part.iterdir()]
    correlations = np.corrcoef([np.asarray(image, dtype=float).ravel() for image in drawn])
    classes = np.repeat(np.arange(4), 10)
    is_same = classes[:, None] == classes
    return correlations[is_same & ~np.eye(40, dtype=bool)].mean() - correlations[~is_same].mean()


def test_drawn_classes_may_be_learned(tmp_path):
    assert abs(likeness_of_drawn(tmp_path / "unlike", 0)) < 0.1
    assert 0.2 < likeness_of_drawn(tmp_path / "alike", 0.6) < 0.6
    assert likeness_of_drawn(tmp_path / "the same", 1) > 0.8  # but for their grain
    done = imgnet("synthesize", tmp_path, "--num-classes", 2, "--per-class", 2, "--likeness", "nan")
    assert (done.exit_code, done.stderr) == (2, "--likeness nan: it is from 0 to 1\n")


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_help_teaches_and_is_quick():
    done = imgnet("--help")
    assert done.exit_code == 0
    for command in ("prepare", "verify", "shard", "synthesize"):
        assert command in done.stdout
    code = "import sys, imgnet.cli; sys.exit(bool({'torch', 'numpy', 'PIL', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("num_workers", [1, 2])
def test_an_image_that_cannot_be_shrunk_ends_the_command_and_is_named(tmp_path, num_workers):
    for split in SPLITS:
        (tmp_path / "images" / split / "a").mkdir(parents=True)
        (tmp_path / "images" / split / "a" / "0.jpeg").write_bytes(jpeg(0)[:400])
    command = ["shard", tmp_path / "images", tmp_path / "shards", "--num-shards", 1, "--workers", num_workers]
    done = imgnet(*command, "--max-size", 16)
    assert done.exit_code == 2
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("sharding")]
    assert line.startswith(f"cannot read the image {tmp_path}/images/train/a/0.jpeg: ")


def test_a_long_name_in_any_script_fits_into_a_shard(tmp_path):
    for split in SPLITS:
        (tmp_path / "images" / split / "a").mkdir(parents=True)
        (tmp_path / "images" / split / "a" / f"{'漢' * 60}.JPEG").write_bytes(jpeg(0))
    done = imgnet("shard", tmp_path / "images", tmp_path / "shards", "--num-shards", 1, "--workers", 1)
    assert done.exit_code == 0, done.stderr
    assert ShardSource(tmp_path / "shards", "train", 1).read(0) == jpeg(0)


def test_sharding_refuses_what_it_cannot_do(tmp_path):
    done = imgnet("shard", tmp_path / "nowhere", tmp_path / "shards", "--num-shards", 2)
    assert done.exit_code == 2
    assert "nowhere is not a folder" in done.stderr
    assert not (tmp_path / "shards" / MANIFEST).exists()
    assert shard_problems(tmp_path / "shards", 2) != []
