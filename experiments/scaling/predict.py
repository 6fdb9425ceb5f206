"""Predicted seconds per step from 8 to 4,096 GPUs on three clusters, as a table and a picture; nothing is run.

    python -m experiments.scaling.predict [--out experiments/scaling] [--local-batch 32]

Each GPU has the same number of images whatever the number of GPUs. It takes some minutes. README.md beside this file
says what came out.
"""

import argparse
import csv
import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl

mpl.use("agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

METHODS = {
    "allreduce": "topology=allreduce",
    "ring": "topology=ring",
    "exp": "topology=exp",
    "alternating-exp-ring": "topology=alternating-exp-ring",
    "DiLoCo": "topology=complete averaging=diloco",
}
"""What is drawn, and how it is asked for."""
PER_NODE = {"8xA40": 4, "32xT4": 8, "8xA100": 4}
"""GPUs of a node of each preset, whose nodes are multiplied."""
SPREAD = 0.03
"""Deviation of a worker's pass over its mean, drawn anew in each step."""
GPUS = tuple(2**power for power in range(3, 13))
LOOKS = (("k", "-", "o"), ("C0", "--", "s"), ("C1", "-.", "^"), ("C2", ":", "D"), ("C3", "-", "v"))
STYLES = dict(zip(METHODS, LOOKS, strict=True))

Row = dict[str, str]


def rows(preset: str, local_batch: int) -> Iterator[Row]:
    """What ``imgnet predict`` says, for every method and number of GPUs."""
    for gpus in GPUS:
        nodes = gpus // PER_NODE[preset]
        if nodes < 2:  # then there is no network between nodes
            continue
        words = [
            "data=synthetic", f"global_batch_size={gpus * local_batch}", f"cluster={preset}", f"cluster.nodes={nodes}",
            "precision=fp16",
        ]  # fmt: skip
        options = ["--csv", "--num-train", "1281167", "--step-spread", str(SPREAD)]
        for method, chosen in METHODS.items():
            command = [sys.executable, "-m", "imgnet", "predict", *chosen.split(), *words, *options]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            yield from ({"method": method} | row for row in csv.DictReader(io.StringIO(done.stdout)))


def draw(found: dict[str, list[Row]]) -> Figure:
    """A panel for each cluster: seconds per step over GPUs."""
    figure, axes = plt.subplots(1, len(found), figsize=(3.6 * len(found), 3.2), layout="constrained", squeeze=False)
    for axis, (preset, of_preset) in zip(axes[0], found.items(), strict=True):
        for method, (colour, line, marker) in STYLES.items():
            of_method = [row for row in of_preset if row["method"] == method]
            points = [(int(row["num_workers"]), float(row["predicted_step_s"])) for row in of_method]
            axis.plot(*zip(*points, strict=True), color=colour, ls=line, marker=marker, ms=4, label=method)
        axis.set(xscale="log", xlabel="GPUs", title=f"nodes of {PER_NODE[preset]} {preset.partition('x')[2]}", ylim=0)
        axis.set_xticks(GPUS[::3], [f"{gpus:,}" for gpus in GPUS[::3]], minor=False)
        axis.minorticks_off()
    axes[0][0].set_ylabel("predicted seconds per step")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    return figure


def main() -> None:
    """Write ``predicted.csv`` and ``predicted.png``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--local-batch", type=int, default=32)
    arguments = parser.parse_args()
    found = {preset: list(rows(preset, arguments.local_batch)) for preset in PER_NODE}
    everything = [row for of_preset in found.values() for row in of_preset]
    with (arguments.out / "predicted.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, everything[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(everything)
    draw(found).savefig(arguments.out / "predicted.png", dpi=120)


if __name__ == "__main__":
    main()
