"""What a checkpoint costs the training: its stall against a copy in memory, its writing against plain writing.

    python benchmarks/checkpoint.py [--rounds 5] [--batch 16] [--folder DIR]

One worker with ResNet-50 and SGD with momentum (205 MB of state) trains on synthetic images on the CPU. Every round
makes a step and a checkpoint, and measures beside them, in the same process: a copy of the same tensors into memory
that is there already, and a plain write and fsync of as many bytes to the same disk.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.spread import spread
from imgnet.checkpoint.manifest import Manifest
from imgnet.checkpoint.tree import pack
from imgnet.checkpoint.writer import Writer
from imgnet.config import DecentralizedConfig, ModelConfig, Precision, RunConfig, SgdConfig
from imgnet.models.build import build_model
from imgnet.optim.factory import build_optimizer
from imgnet.parallel.build import build_strategy
from imgnet.runtime import Runtime
from imgnet.train import objective_of
from tests.distributed.harness import on_workers

PIXELS = 64


def measure(runtime: Runtime, rounds: int, batch: int, folder: Path) -> list[dict[str, float]]:
    """Seconds of each part in each round."""
    torch.set_num_threads(2)
    config = RunConfig(
        precision=Precision.fp32, topology=DecentralizedConfig(name="ring"), model=ModelConfig(name="resnet50"),
        optimizer=SgdConfig(name="sgd", lr=0.1, weight_decay=1e-4, momentum=0.9),
    )  # fmt: skip
    model = build_model(config.model, 1000, device=runtime.device, channels_last=True)
    make_optimizer = partial(build_optimizer, config=config.optimizer)
    strategy = build_strategy(config, model, objective_of(config), make_optimizer, runtime, steps_per_epoch=1)
    images, targets = torch.randn(batch, 3, PIXELS, PIXELS), torch.randint(1000, (batch,))
    writer = Writer(folder, [0], keep_last=1)
    copies, content, found = [], b"", []
    for number in range(rounds + 1):
        step_s = seconds(partial(strategy.step, images, targets, 0.1, 0))
        state = {"model": model.state_dict(), "strategy": strategy.state()}
        _, tensors = pack(state)
        num_bytes = sum(tensor.nbytes for tensor in tensors.values())
        if number == 0:
            copies, content = [torch.empty_like(tensor) for tensor in tensors.values()], os.urandom(num_bytes)
        copy_s = seconds(partial(copy_all, copies, list(tensors.values())))
        writer.write([state], Manifest(number + 1, 1, 1, {}, {}))
        stall_s = writer.stall_s
        write_s = seconds(writer.wait)
        plain_s = seconds(partial(write_plainly, folder / "plain", content))
        found.append(
            {"bytes": num_bytes, "step": step_s, "copy": copy_s, "stall": stall_s, "write": write_s, "plain": plain_s}
        )
    return found[1:]  # the first round allocates


def seconds(function: Callable[[], object]) -> float:
    """Wall time of a call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def copy_all(targets: list[torch.Tensor], sources: list[torch.Tensor]) -> None:
    """The least that a snapshot must do."""
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


def write_plainly(path: Path, content: bytes) -> None:
    """As many bytes, written and synchronised at once."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def main() -> None:
    """Print the medians and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: the system's temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        rounds = on_workers(
            measure, 1, Path(folder), options.rounds, options.batch, Path(folder) / "checkpoints", timeout_s=1800
        )[0]
    median = {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
    ratio = spread([one["stall"] / one["copy"] for one in rounds])
    megabytes = median["bytes"] / 1e6
    print(f"state                  {megabytes:7.1f} MB")
    print(f"step                   {median['step'] * 1e3:7.1f} ms  (ResNet-50, {options.batch} images of {PIXELS} px)")
    print(f"copy in memory         {median['copy'] * 1e3:7.1f} ms")
    print(f"stall of a checkpoint  {median['stall'] * 1e3:7.1f} ms  {ratio} x the copy (limit 1.5),", end="")
    print(f" {median['stall'] / median['step']:.2f} x a step")
    print(f"writing behind         {median['write'] * 1e3:7.1f} ms  {megabytes / median['write']:7.0f} MB/s")
    print(f"plain write and fsync  {median['plain'] * 1e3:7.1f} ms  {megabytes / median['plain']:7.0f} MB/s", end="")
    print(f"  ratio of throughputs {spread([one['plain'] / one['write'] for one in rounds])}")


if __name__ == "__main__":
    main()
