"""Shards staged on two nodes: nobody begins before every node has its copy, and nobody waits for ever."""

import fcntl
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from imgnet.config import DataConfig, DataKind
from imgnet.data.loader import prepare_nodes
from imgnet.data.sources.shards import MANIFEST
from imgnet.data.staging import stage, staged_root
from imgnet.runtime import Runtime
from tests.distributed.harness import on_workers
from tests.test_data_shards import NUM_CLASSES, folder, sharded  # noqa: F401  (fixtures)

WORKERS_PER_NODE = 2


def config(root: Path) -> DataConfig:
    return DataConfig(
        name="staged", kind=DataKind.shards, root=str(root), num_classes=NUM_CLASSES, train_px=32, eval_px=32,
        eval_resize_px=36, mean=[0.5] * 3, std=[0.5] * 3, stage_to="$LOCAL_SSD",
    )  # fmt: skip


def local_disk(nodes: Path, node: int) -> Path:
    return nodes / str(node)


def stage_on_nodes(runtime: Runtime, data: DataConfig, nodes: Path) -> list[bool]:
    """Whether each node has a whole copy when this worker goes on."""
    os.environ["LOCAL_SSD"] = str(local_disk(nodes, runtime.rank // WORKERS_PER_NODE))
    prepare_nodes(data, runtime)
    assert data.root is not None
    copies = [staged_root(Path(data.root), str(local_disk(nodes, node))) for node in range(2)]
    return [(copy / MANIFEST).is_file() for copy in copies]


def test_no_worker_begins_before_all_nodes_have_their_copy(sharded: Path, tmp_path: Path) -> None:  # noqa: F811
    nodes = tmp_path / "nodes"
    stage(sharded, str(local_disk(nodes, 0)))  # warm
    found = on_workers(stage_on_nodes, 4, tmp_path, config(sharded), nodes, workers_per_node=WORKERS_PER_NODE)
    assert found == [[True, True]] * 4


def wait_for_node(runtime: Runtime, data: DataConfig, nodes: Path) -> str:
    """What this worker is told. The second node's copy is held up until rank 0 has given it up."""
    assert data.root is not None
    hanging = staged_root(Path(data.root), str(local_disk(nodes, 1)))
    with hanging.with_name(f".{hanging.name}.lock").open("w") as lock:
        if runtime.is_main:
            fcntl.flock(lock, fcntl.LOCK_EX)  # as another process of that node holds it that copies for ever
        with pytest.raises(RuntimeError) as refused:
            stage_on_nodes(runtime, data, nodes)
    return str(refused.value)


def test_a_node_that_does_not_get_ready_is_named(sharded: Path, tmp_path: Path) -> None:  # noqa: F811
    nodes = tmp_path / "nodes"
    local_disk(nodes, 1).mkdir(parents=True)
    short = replace(config(sharded), stage_timeout_min=0.02)  # type: ignore[arg-type]
    told = on_workers(wait_for_node, 4, tmp_path, short, nodes, workers_per_node=WORKERS_PER_NODE)
    assert all(line.startswith("data.stage_to=$LOCAL_SSD: a node was not ready after") for line in told)
    assert re.search("Ranks? 2 failed", told[0])
