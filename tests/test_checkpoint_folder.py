"""Checkpoints on disk: written whole or not at all, read without executing anything."""

import json
import logging
import os
import pickle
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from imgnet.checkpoint.folder import check_worker, read_average, read_worker, write_worker
from imgnet.checkpoint.manifest import (
    DamagedError,
    Manifest,
    complete,
    folder_of,
    partial_of,
    read_manifest,
    steps_of,
)
from imgnet.checkpoint.tree import pack, unpack
from imgnet.checkpoint.writer import Writer
from imgnet.models.build import SmallCnn
from tests.commands import environment
from tests.disks import mounted

TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=3)
    ),
    max_leaves=10,
)


def manifest(step: int, world_size: int = 1, **metrics: float) -> Manifest:
    return Manifest(step=step, epoch=1, world_size=world_size, trained={"model.name": "small_cnn"}, metrics=metrics)


@given(tree=TREES)
def test_any_nested_state_comes_back_the_same(tree: Any) -> None:
    spec, tensors = pack(tree)
    assert unpack(json.loads(json.dumps(spec)), tensors) == tree


def test_tensors_and_arrays_come_back_with_their_types(tmp_path: Path) -> None:
    state = {
        "model": {"weight": torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)},
        "optimizer": {"state": {0: {"step": torch.tensor(3.0), "half": torch.ones(2, dtype=torch.bfloat16)}}},
        "array": np.arange(5),
        "betas": (0.9, 0.999),
    }
    spec, tensors = pack(state)
    write_worker(tmp_path, 0, spec, tensors)
    check_worker(tmp_path, 0)
    found = read_worker(tmp_path, 0)
    assert torch.equal(found["model"]["weight"], state["model"]["weight"])
    assert found["optimizer"]["state"][0]["half"].dtype == torch.bfloat16
    assert found["betas"] == (0.9, 0.999)
    assert np.array_equal(found["array"], state["array"])


class Payload:
    """Unpickled, it would touch a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mknod, (str(self.path),)


def test_a_pickle_that_executes_code_is_refused_and_not_executed(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    content = pickle.dumps(Payload(touched))
    (tmp_path / "rank_0.safetensors").write_bytes(content)
    about = {"bytes": len(content), "crc32": zlib.crc32(content)}
    (tmp_path / "rank_0.json").write_text(json.dumps(about))
    with pytest.raises(DamagedError, match=r"rank_0\.safetensors is no worker's state"):
        read_worker(tmp_path, 0)
    assert not touched.exists()


def write_run(checkpoints: Path, steps: dict[int, float], world_size: int = 1) -> list[Writer]:
    writers = [Writer(checkpoints, [rank], keep_last=2) for rank in range(world_size)]
    for step, accuracy in steps.items():
        for rank, writer in enumerate(writers):
            torch.manual_seed(100 * step + rank)
            writer.write([{"model": SmallCnn(10).state_dict()}], manifest(step, world_size, val_acc1=accuracy))
        for writer in writers:
            writer.wait()
    return writers


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    write_run(tmp_path, {1: 10.0, 2: 90.0, 3: 50.0, 4: 60.0, 5: 70.0})
    assert [read_manifest(folder).step for folder in steps_of(tmp_path)] == [5, 4, 2]


def test_steps_of_a_training_that_was_left_go_when_the_next_checkpoint_is_whole(tmp_path: Path) -> None:
    """After a start on other workers, which goes back to the beginning of an epoch, or after a damaged checkpoint."""
    write_run(tmp_path, {30: 50.0, 40: 90.0})
    write_run(tmp_path, {35: 60.0, 36: 70.0})
    assert [read_manifest(folder).step for folder in steps_of(tmp_path)] == [36, 35]


def test_a_manifest_that_cannot_be_read_stops_no_pruning(tmp_path: Path) -> None:
    write_run(tmp_path, {1: 10.0, 2: 20.0})
    (steps_of(tmp_path)[0] / "manifest.json").write_bytes(b"")
    write_run(tmp_path, {3: 30.0, 4: 40.0, 5: 50.0})
    assert [folder.name[-1] for folder in steps_of(tmp_path)] == ["5", "4", "2"]


def test_what_a_late_worker_left_of_a_checkpoint_that_was_given_up_goes_with_the_next(tmp_path: Path) -> None:
    left = partial_of(folder_of(tmp_path, 1))
    left.mkdir()
    (left / "rank_1.safetensors").write_bytes(b"0" * 1000)
    under_way = partial_of(folder_of(tmp_path, 3))
    under_way.mkdir()
    write_run(tmp_path, {2: 50.0})
    assert sorted(path.name for path in tmp_path.iterdir()) == [under_way.name, "step_0000000002"]


def test_a_state_may_have_other_tensors_than_the_one_before(tmp_path: Path) -> None:
    """Of one name, in one number of dimensions, in another size: as fragments under way have it, or none at all."""
    writer, sizes = Writer(tmp_path, [0], keep_last=4), [(5,), (3,), (), (7, 2)]
    states = [{"model": {}, "sent": [torch.randn(size) for size in some]} for some in sizes]
    for step, state in enumerate(states, start=1):
        writer.write([state], manifest(step))
    writer.wait()
    for state, folder in zip(reversed(states), steps_of(tmp_path), strict=True):
        found = read_worker(folder, 0)["sent"]
        assert all(torch.equal(one, other) for one, other in zip(found, state["sent"], strict=True))


def test_a_folder_without_all_files_is_never_whole(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, 7)
    partial_of(folder).mkdir()
    assert steps_of(tmp_path) == []
    complete(partial_of(folder), folder, manifest(7))
    assert steps_of(tmp_path) == [folder]


def test_the_average_of_a_checkpoint_is_the_mean_of_its_workers(tmp_path: Path) -> None:
    write_run(tmp_path, {3: 50.0}, world_size=3)
    (folder,) = steps_of(tmp_path)
    models = [read_worker(folder, rank)["model"] for rank in range(3)]
    mean = read_average(folder, 3)
    wanted = torch.stack([model["classifier.weight"] for model in models]).mean(0)
    assert torch.allclose(mean["classifier.weight"], wanted)
    assert mean["features.1.num_batches_tracked"].dtype == torch.int64


def imgnet(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "imgnet", *arguments],
        cwd=cwd, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_command_shows_checkpoints_and_makes_a_model_of_one(tmp_path: Path) -> None:
    write_run(tmp_path / "checkpoints", {3: 50.0, 4: 62.5}, world_size=2)
    newest = steps_of(tmp_path / "checkpoints")[0]
    victim = steps_of(tmp_path / "checkpoints")[1] / "rank_1.safetensors"
    victim.write_bytes(victim.read_bytes()[:-1])
    shown = imgnet("checkpoint", "show", ".", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "62.50" in shown.stdout
    assert "complete" in shown.stdout
    assert "bytes, not" in shown.stdout
    done = imgnet("checkpoint", "average", ".", "--out", "mean.safetensors", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    SmallCnn(10).load_state_dict(load_file(tmp_path / "mean.safetensors"))
    refused = imgnet("checkpoint", "average", ".", "--out", "nowhere/mean.safetensors", cwd=tmp_path)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert refused.stderr.startswith("nowhere/mean.safetensors: ")
    refused = imgnet("checkpoint", "average", str(victim.parent), cwd=tmp_path)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert newest.name in shown.stdout


def test_a_folder_without_checkpoints_is_refused_in_one_line(tmp_path: Path) -> None:
    refused = imgnet("checkpoint", "show", "elsewhere", cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr == "elsewhere: no whole checkpoint there; they are in checkpoints/ of a run directory\n"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", megabytes=1) as disk:
        yield disk


def test_a_full_disk_costs_a_warning_and_leaves_the_checkpoint_before_whole(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (writer,) = write_run(small_disk, {1: 50.0})
    big = {"model": {"weight": torch.zeros(1_000_000)}}
    with caplog.at_level(logging.WARNING, "imgnet"):
        writer.write([big], manifest(2))
        writer.wait()
    assert "checkpoint of step 2 not written" in caplog.text
    assert "No space left on device" in caplog.text
    assert "training goes on" in caplog.text
    assert [read_manifest(folder).step for folder in steps_of(small_disk)] == [1]
    check_worker(steps_of(small_disk)[0], 0)
    assert [file.name for file in small_disk.iterdir()] == ["step_0000000001"]
    writer.write({"model": SmallCnn(10).state_dict()}, manifest(3))
    writer.wait()
    assert read_manifest(steps_of(small_disk)[0]).step == 3
