"""Peak resident memory of a worker, part by part, with the parameters of ResNet-50 on the CPU.

    python -m benchmarks.memory

Four gloo workers for each row, whose layers compute nothing: activations would hide the rest. A row is what the part
adds to a process that has imported torch and joined the others, as the mean over the workers; beside it what is needed.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.network import Case
from benchmarks.network_worker import NUM_PARAMETERS, SGD, PacedResNet50, configuration, make_strategy
from imgnet.checkpoint.manifest import Manifest
from imgnet.checkpoint.writer import Writer
from imgnet.config import DataBackend, DataConfig, DataKind, RunConfig
from imgnet.data.loader import build_train_loader
from imgnet.data.sources import digits
from imgnet.parallel.engines.strategy import Strategy
from imgnet.runtime import Runtime
from tests.distributed.harness import on_workers

WORKERS, PER_NODE, STEPS, PX, BATCH = 4, 2, 4, 176, 64
COPY_MB = NUM_PARAMETERS * 4 / 1e6
"""10^6 bytes of the parameters in fp32."""
STATE_COPIES = 2
"""Parameters and momentum: what a checkpoint holds."""
ENGINES = (
    ("DDP", "allreduce", "fp32", None),
    ("ring", "ring", "fp32", None),
    ("ring, bf16", "ring", "bf16", None),
    ("exp", "exp", "fp32", None),
    ("complete", "complete", "fp32", None),
    ("complete, bf16", "complete", "bf16", None),
    ("alternating-exp-ring", "alternating-exp-ring", "fp32", None),
    ("DDP, clipped", "allreduce", "fp32", 1.0),
    ("ring, clipped", "ring", "fp32", 1.0),
    ("complete, bf16, clipped", "complete", "bf16", 1.0),
)
"""Name, method, messages, and the norm that gradients are clipped to."""


def needed_by(method: str, max_grad_norm: float | None) -> tuple[str, int]:
    """What a worker cannot do without, in words and in copies of the parameters."""
    if method == "allreduce":
        return "parameters, gradients, momentum", 3
    if max_grad_norm is None:
        return "parameters, momentum, messages", 3
    return "parameters, gradients, momentum, messages", 4


@dataclass(frozen=True)
class Row:
    """10^6 bytes of one worker."""

    part: str
    measured_mb: float
    needed: str
    needed_mb: float


def peak_of(function: Callable[[], object]) -> float:
    """10^6 bytes that a call adds, at its peak, to what this process holds before it."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    before = _resident_mb("VmRSS")
    function()
    return _resident_mb("VmHWM") - before


def _resident_mb(which: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{which}:"))) * 1024 / 1e6


def trained(runtime: Runtime, config: RunConfig) -> Strategy:
    """A strategy after some steps, one round of every kind among them."""
    strategy = make_strategy(config, PacedResNet50(), runtime)
    images, targets = torch.zeros(1, 3, 8, 8), torch.zeros(1)
    for step in range(STEPS):
        strategy.step(images, targets, SGD.lr, step)
    strategy.communication_wait_s()
    return strategy


def engine_mb(runtime: Runtime, method: str, wire: str, max_grad_norm: float | None) -> float:
    """Parameters, optimizer, gradients and messages."""
    torch.set_num_threads(1)
    kept: list[Strategy] = []
    config = configuration(Case(method, wire, straggler=False), None, max_grad_norm)
    peak = peak_of(lambda: kept.append(trained(runtime, config)))
    for averaging in getattr(getattr(kept[0], "_method", None), "averagings", ()):
        averaging.settle()
    return peak


def checkpoint_mb(_: Runtime, folder: Path) -> float:
    """What two checkpoints of parameters and momentum add to them."""
    state = {"model": {"x": torch.randn(NUM_PARAMETERS)}, "strategy": {"momentum": torch.randn(NUM_PARAMETERS)}}
    writer = Writer(folder, [0], keep_last=1)

    def write() -> None:
        for number in range(2):
            writer.write([state], Manifest(number + 1, 1, 1, {}, {}))
            writer.wait()

    return peak_of(write)


def loader_mb(runtime: Runtime, root: Path, backend: DataBackend) -> float:
    """Two epochs."""
    data = DataConfig(
        name="digits", kind=DataKind.digits, root=str(root), num_classes=10, train_px=PX, eval_px=PX,
        eval_resize_px=PX, mean=[0.5] * 3, std=[0.25] * 3, backend=backend,
    )  # fmt: skip

    def read() -> None:
        loader = build_train_loader(data, seed=1, global_batch_size=BATCH, channels_last=True, worker=runtime)
        for epoch in range(2):
            for _ in loader.batches(epoch):
                pass
        loader.close()

    return peak_of(read)


def on_fresh_workers(function: Callable[..., float], workers: int, *arguments: Any) -> float:
    """The mean over the workers."""
    with tempfile.TemporaryDirectory() as folder:
        found = on_workers(function, workers, Path(folder), *arguments, workers_per_node=min(workers, PER_NODE))
    return sum(found) / len(found)


def measured() -> list[Row]:
    """All rows."""
    rows = []
    for name, method, wire, max_norm in ENGINES:
        needed, copies = needed_by(method, max_norm)
        peak = on_fresh_workers(engine_mb, WORKERS, method, wire, max_norm)
        rows.append(Row(name, peak, needed, copies * COPY_MB))
    with tempfile.TemporaryDirectory() as folder:
        added = on_fresh_workers(checkpoint_mb, 1, Path(folder) / "checkpoints")
        rows.append(Row("checkpoint writer", added, "a copy of parameters and momentum", STATE_COPIES * COPY_MB))
        digits.ensure_digits(Path(folder) / "digits")
        batch_mb = BATCH * 3 * PX * PX * 4 / 1e6
        for backend in (DataBackend.torchvision, DataBackend.dali):
            added = on_fresh_workers(loader_mb, 1, Path(folder) / "digits", backend)
            rows.append(Row(f"loader, {backend.value}, {BATCH} x {PX} px", added, "two batches", 2 * batch_mb))
    return rows


def main() -> None:
    """Print the table."""
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("part", "peak MB", "needed MB", "/ needed", "needed"):
        table.add_column(column, justify="left" if column in ("part", "needed") else "right")
    for row in measured():
        ratio = f"{row.measured_mb / row.needed_mb:.2f}"
        table.add_row(row.part, f"{row.measured_mb:.0f}", f"{row.needed_mb:.0f}", ratio, row.needed)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
