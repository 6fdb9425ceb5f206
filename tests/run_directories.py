"""Run directories as training leaves them, made in a moment: for tests and benchmarks of what reads them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from imgnet import rundir
from imgnet.tracking.tracker import COLUMNS

START = "2026-03-01T10:00:00+00:00"
NUM_VAL_IMAGES = 50_000


def write_run(
    run_dir: Path,
    *,
    topology: str = "ring",
    seed: int = 1,
    accuracies: Sequence[float] = (50.0, 70.0, 76.0),
    epoch_s: float = 10.0,
    epochs: int | None = None,
    status: str = "completed",
    error: str | None = None,
    typed: Sequence[str] = (),
    settings: dict[str, Any] | None = None,
    about: dict[str, Any] | None = None,
    distance: float = 0.5,
    steps: int = 20,
) -> Path:
    """One run of four workers, an epoch for each accuracy, ``epoch_s`` of training each.

    Args:
        run_dir: a new folder.
        topology: typed as an override, and in the configuration.
        seed: likewise.
        accuracies: top-1 after each epoch, in percent.
        epoch_s: seconds of an epoch.
        epochs: planned ones; as many as there are accuracies if not given.
        status: of the run.
        error: of a failed one.
        typed: further overrides.
        settings: further configuration.
        about: of ``run.json``, instead of what it would hold.
        distance: of the workers at the end.
        steps: rows of ``steps.jsonl``.
    """
    (run_dir / ".hydra").mkdir(parents=True)
    (run_dir / "logs").mkdir()
    config = {"name": "study", "seed": seed, "epochs": epochs or len(accuracies), "global_batch_size": 64}
    config |= {"topology": {"name": topology}, "optimizer": {"name": "adam", "lr": 0.001}} | (settings or {})
    (run_dir / ".hydra" / "config.yaml").write_text(OmegaConf.to_yaml(config))
    described = {
        "command": ["run.py", "-m", "topology=allreduce,ring", "seed=1,2,3"],
        "overrides": [f"topology={topology}", *typed, f"seed={seed}"],
        "commit": "0" * 40,
        "dirty": False,
        "versions": {"imgnet": "0.1.0", "torch": "2.15.0"},
        "python": "3.11.7",
        "hosts": ["node1"],
        "world_size": 4,
        "seed": seed,
        "start": START,
        "end": START,
        "status": status,
        "error": error,
    } | (about or {})
    rundir.write_run(run_dir, **described)
    rows = [_row(number, accuracy, epoch_s, distance) for number, accuracy in enumerate(accuracies, start=1)]
    lines = [",".join(COLUMNS), *(",".join(str(row.get(name, "")) for name in COLUMNS) for row in rows)]
    (run_dir / "metrics.csv").write_text("\n".join(lines) + "\n")
    if rows:
        rundir.write_summary(run_dir, rows[-1] | {"best_acc1": max(accuracies), "status": status})
    (run_dir / "steps.jsonl").write_text(
        "".join(json.dumps(_step(number, epoch_s)) + "\n" for number in range(1, steps + 1))
    )
    log = [f"2026-03-01 10:00:00,000 INFO imgnet: epoch {row['epoch']}/{len(rows)} {json.dumps(row)}" for row in rows]
    (run_dir / "logs" / "rank_0.log").write_text("\n".join(log) + "\n")
    return run_dir


def _row(epoch: int, accuracy: float, epoch_s: float, distance: float) -> dict[str, float]:
    return {
        "epoch": epoch,
        "step": 20 * epoch,
        "train_loss": 4.0 / epoch,
        "val_loss": 3.0 / epoch,
        "val_acc1": accuracy,
        "val_acc5": min(100.0, accuracy + 15),
        "train_time_s": epoch_s * epoch,
        "images_per_s": 1280 / epoch_s,
        "consensus_distance": distance,
        "neighbour_distance": distance,
        "lr": 0.001 / epoch,
        "eval_time_s": 1.0,
        "num_val_images": NUM_VAL_IMAGES,
    }


def _step(number: int, epoch_s: float) -> dict[str, float]:
    seconds = epoch_s / 20
    row = {"epoch": 1, "step": 10 * number, "loss": 4.0 / number, "lr": 0.001, "step_s": seconds}
    return (
        row
        | {"data_s": 0.1 * seconds, "communication_s": 0.3 * seconds, "images_per_s": 64 / seconds}
        | {"compute_s": 0.6 * seconds}
    )


def write_imagenet_like_sweep(
    folder: Path, topologies: Sequence[str], seeds: Sequence[int], *, epochs: int = 90, typed: Sequence[str] = ()
) -> list[Path]:
    """Runs that look like ResNet-50's: accuracies that rise to about 76 %, with noise, at speeds that differ."""
    runs = []
    for place, topology in enumerate(topologies):
        for seed in seeds:
            draw = np.random.default_rng([place, seed])
            share = np.arange(1, epochs + 1) / epochs
            rise = 76 - 0.15 * (place % 7) + draw.normal(0, 0.1) - 70 * (1 - share) ** 2 * np.exp(-3 * share)
            accuracies = (rise + draw.normal(0, 0.6, epochs) * (1 - share)).round(3).tolist()
            runs.append(
                write_run(
                    folder / str(len(runs)),
                    topology=topology,
                    seed=seed,
                    accuracies=accuracies,
                    epoch_s=(210 if topology == "allreduce" else 160 + 4 * (place % 11)) * draw.normal(1, 0.01),
                    distance=0.0 if topology == "allreduce" else 0.2 + 0.1 * place,
                    typed=typed,
                )
            )
    return runs
