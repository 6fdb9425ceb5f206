"""Hydra's own spelling: the plugin's launchers exactly as published, on a Slurm without accounting."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.slurm.conftest import QUICK, User, run_json

pytestmark = pytest.mark.slurm
TWO_BY_TWO = (
    "hydra/launcher=submitit_slurm",
    "hydra.launcher.partition=gpu",
    "hydra.launcher.nodes=2",
    "hydra.launcher.tasks_per_node=2",
    "hydra.launcher.cpus_per_task=2",
)
BEGIN = "                run(config, runtime, run_dir, stop, watch)\n"
ON_RANK_3 = """\
                if runtime.rank == 3:
                    raise RuntimeError('unwell')
"""


def _same_tensors(one: Path, other: Path) -> bool:
    first, second = (load_file(run / "checkpoints/final.safetensors") for run in (one, other))
    return all(np.array_equal(first[name], second[name]) for name in first.keys() | second.keys())


def test_two_nodes_of_two_workers_give_what_local_workers_give(user: User) -> None:
    refused = user.run_py(*QUICK, *TWO_BY_TWO, "global_batch_size=66")
    assert refused.returncode == 2
    assert "global_batch_size=66 is not divisible by 4 workers" in refused.stderr
    assert not (user.folder / "multirun_outputs").exists()

    done = user.run_py(*QUICK, *TWO_BY_TWO, "topology=ring")
    assert done.returncode == 0, done.stderr
    assert "sacct" not in done.stderr
    (run_dir,) = user.runs()
    run = run_json(run_dir)
    assert (run["status"], run["world_size"]) == ("completed", 4)
    assert "completed" in user.imgnet("status").stdout
    local = user.run_py(*QUICK, "topology=ring", "cluster.cpu_workers_per_node=4")
    assert local.returncode == 0, local.stderr
    (other,) = set(user.runs()) - {run_dir}
    assert _same_tensors(run_dir, other)


def test_a_rank_that_raises_is_named(developer: User) -> None:
    developer.edit("imgnet/launch/start.py", BEGIN, ON_RANK_3 + BEGIN)
    done = developer.run_py(*QUICK, *TWO_BY_TWO)
    assert done.returncode == 1, done.stderr
    (run_dir,) = developer.runs()
    assert (run_json(run_dir)["status"], run_json(run_dir)["error"]) == (
        "failed",
        "rank 3 failed: RuntimeError: unwell",
    )
    assert "rank 3 failed: RuntimeError: unwell" in done.stderr
