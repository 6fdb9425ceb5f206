import hashlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from imgnet.config import ConfigError
from imgnet.data.sources.folder import SPLITS
from imgnet.data.sources.shards import INDEX, MANIFEST, Manifest, ShardSource, SplitRecord, record_of, shard_problems
from imgnet.data.staging import stage, staged_root
from tests.commands import environment
from tests.test_data_shards import NUM_CLASSES, folder, sharded  # noqa: F401  (fixtures)

STAGE = "import sys; from pathlib import Path; from imgnet.data.staging import stage; "
STAGE += "print(stage(Path(sys.argv[1]), sys.argv[2]).num_files_copied)"


def checksums(root):
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and not path.name.startswith((".", "plan"))]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_copy_is_read_like_the_original(sharded, tmp_path):  # noqa: F811
    staged = stage(sharded, str(tmp_path / "ssd"))
    assert staged.root == staged_root(sharded, str(tmp_path / "ssd"))
    assert staged.num_files_copied == 6  # four shards, two indexes
    assert checksums(staged.root) == checksums(sharded)
    original, copy = (ShardSource(root, "train", NUM_CLASSES) for root in (sharded, staged.root))
    assert [copy.read(index) for index in range(20)] == [original.read(index) for index in range(20)]
    again = stage(sharded, str(tmp_path / "ssd"))
    assert (again.root, again.num_files_copied, again.num_bytes_copied) == (staged.root, 0, 0)


def test_variables_of_the_node_are_read(sharded, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("TMPDIR", str(tmp_path / "job"))
    assert stage(sharded, "$TMPDIR/images").root.parent == tmp_path / "job" / "images"
    monkeypatch.delenv("TMPDIR")
    with pytest.raises(ConfigError, match=r"data\.stage_to=\$TMPDIR/images: the variable TMPDIR is not set"):
        stage(sharded, "$TMPDIR/images")


def test_eight_processes_copy_once(sharded, tmp_path):  # noqa: F811
    command = [sys.executable, "-c", STAGE, str(sharded), str(tmp_path)]
    processes = [
        subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
        for _ in range(8)
    ]
    copied = [int(process.communicate()[0]) for process in processes]
    assert [process.returncode for process in processes] == [0] * 8
    assert sorted(copied) == [0] * 7 + [6]


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Shards of 96 MB, so that a copy takes long enough to be interrupted."""
    root = tmp_path_factory.mktemp("large") / "shards"
    generator, records = np.random.default_rng(0), {}
    for split in SPLITS:
        (root / split).mkdir(parents=True)
        names = [INDEX, *(f"shard-{number:06d}.tar" for number in range(6))]
        for name in names:
            (root / split / name).write_bytes(generator.bytes(8 << 20))
        index, *shards = (record_of(root / split / name) for name in names)
        records[split] = SplitRecord(0, index, shards)
    Manifest(["a", "b", "c"], {}, records).write(root)
    return root


def test_a_copy_killed_ten_times_ends_whole(large, tmp_path):
    context, generator, unfinished = multiprocessing.get_context("fork"), random.Random(0), 0
    for _ in range(10):
        process = context.Process(target=stage, args=(large, str(tmp_path)))
        process.start()
        # A random moment is what the test is about: some land before the first byte, some after the last.
        time.sleep(generator.uniform(0, 0.03))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        target = staged_root(large, str(tmp_path))
        if (target / MANIFEST).exists():
            assert checksums(target) == checksums(large)
        else:
            unfinished += 1
            assert shard_problems(target, 3) != []  # never taken for a whole one
    assert unfinished > 0
    stage(large, str(tmp_path))
    assert checksums(staged_root(large, str(tmp_path))) == checksums(large)
    assert not list(staged_root(large, str(tmp_path)).glob("*/.*"))


def test_what_was_copied_is_not_copied_again(large, tmp_path):
    target = stage(large, str(tmp_path)).root
    lost = target / "train" / "shard-000003.tar"
    lost.unlink()
    assert stage(large, str(tmp_path)).num_files_copied == 1
    assert checksums(target) == checksums(large)


def test_after_a_restart_of_the_node_the_copy_is_checked(large, tmp_path):
    target = stage(large, str(tmp_path)).root
    (target / ".boot").write_text("another")
    damaged = target / "val" / "shard-000001.tar"
    flip_byte(damaged)
    assert stage(large, str(tmp_path)).num_files_copied == 1
    assert checksums(target) == checksums(large)


def test_what_is_damaged_after_a_restart_is_not_trusted_where_the_copy_is_killed(large, tmp_path):
    target = stage(large, str(tmp_path)).root
    (target / ".boot").write_text("another")
    damaged = [target / "val" / f"shard-{number:06d}.tar" for number in range(6)]
    for path in damaged:
        flip_byte(path)
    elsewhere = large / "val" / damaged[-1].name
    elsewhere.rename(large / "away")  # the job comes to its end while it copies
    with pytest.raises(ConfigError):
        stage(large, str(tmp_path))
    (large / "away").rename(elsewhere)
    stage(large, str(tmp_path))
    assert checksums(target) == checksums(large)


def test_a_flipped_byte_is_found(sharded, tmp_path):  # noqa: F811
    shard = sharded / "train" / "shard-000001.tar"
    flip_byte(shard)
    with pytest.raises(ConfigError) as caught:
        stage(sharded, str(tmp_path / "ssd"))
    assert f"the shard {shard} is damaged" in str(caught.value)
    target = staged_root(sharded, str(tmp_path / "ssd"))
    assert not (target / "train" / shard.name).exists()
    assert not (target / MANIFEST).exists()


def flip_byte(path):
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def test_too_little_space_is_refused_before_the_first_byte(large, tmp_path):
    manifest = large / MANIFEST
    content = manifest.read_text()
    root = tmp_path / "huge"
    root.mkdir()
    (root / MANIFEST).write_text(content.replace(f'"num_bytes": {8 << 20}', f'"num_bytes": {8 << 50}'))
    with pytest.raises(ConfigError, match=r"GB free, and the shards take \d+") as caught:
        stage(root, str(tmp_path / "ssd"))
    assert str(tmp_path / "ssd") in str(caught.value)
    assert not [path for path in (tmp_path / "ssd").rglob("*") if path.is_file() and path.stat().st_size]


def test_a_folder_that_cannot_be_written_to_is_named(large, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"data\.stage_to=.*file"):
        stage(large, str(tmp_path / "file"))
