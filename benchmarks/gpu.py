"""What a GPU gives our loops, and what they waste of it; smaller, the same on a CPU.

    python -m benchmarks.gpu
    python -m benchmarks.gpu --device cpu --model small_cnn --px 32 --batch 32 --steps 6 --rounds 1 --no-compile

For each size of images, with and without ``torch.compile``: images/s of the decentralized loop on one worker beside a
bare loop of the same arithmetic, in turns. Then synchronisations of the host and idle time between kernels outside
logging steps, by torch's profiler; how much of the averaging hides (two workers with NCCL on two GPUs, else three
that share the device, with gloo); the stall of a checkpoint; peak memory; and, with ``--images``, DALI's images/s.
"""

import json
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from gzip import decompress
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.step_overhead import Ours, configuration, measure, timed
from imgnet.checkpoint.manifest import Manifest
from imgnet.checkpoint.writer import Writer
from imgnet.config import (
    DataBackend,
    DataConfig,
    DataKind,
    DecentralizedConfig,
    ModelConfig,
    Precision,
    ProfileConfig,
    RunConfig,
)
from imgnet.data.loader import TrainLoader, build_train_loader
from imgnet.profile.intervals import difference, length, union
from imgnet.rundir import PROFILE
from imgnet.runtime import Runtime, memory_peak_mb
from tests.distributed.harness import on_workers

SYNCHRONISATIONS = (
    "aten::_local_scalar_dense",
    "cudaStreamSynchronize",
    "cudaDeviceSynchronize",
    "cudaEventSynchronize",
)
"""Events in which the host waits for the device. (On a CPU the first alone: what would wait on a GPU.)"""
TIMEOUT_S = 3600
MB = 2**20

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Throughput:
    """Of both loops; ``ratio`` is the median over the rounds of bare seconds over ours."""

    px: int
    compiled: bool
    ours_images_per_s: float
    bare_images_per_s: float
    ratio: float
    peak_memory_mb: float


@dataclass(frozen=True)
class Trace:
    """Of recorded steps, none of which logs."""

    num_steps: int
    synchronisations: int
    idle_share: float | None
    """Of the time between the first kernel and the last; None without a GPU."""
    step_ms: float
    communication_ms: float
    hidden_share: float | None
    """Of the communication; None where nothing was sent."""


def config_of(model: str, px: int, batch: int, steps: int, compiled: bool, precision: Precision) -> RunConfig:
    """The decentralized loop on synthetic images."""
    base = configuration(steps)
    data = replace(
        base.data, train_px=px, eval_px=px, eval_resize_px=px, num_train=steps * batch, num_val=batch, num_classes=1000
    )
    return replace(
        base, data=data, model=ModelConfig(name=model), topology=DecentralizedConfig(name="ring"), precision=precision,
        compile=compiled, global_batch_size=batch, log_every_steps=10**6,
    )  # fmt: skip


def on_device(runtime: Runtime, device: str) -> Runtime:
    """The same worker; two of them may share a GPU."""
    if device == "cpu":
        return runtime
    torch.cuda.set_device(runtime.local_rank % torch.cuda.device_count())
    return replace(runtime, device=torch.device("cuda", torch.cuda.current_device()))


def throughput(runtime: Runtime, device: str, config: RunConfig, rounds: int, folder: Path) -> Throughput:
    """Both loops, in turns."""
    runtime = on_device(runtime, device)
    times = measure(runtime, config, rounds, folder)
    images = config.data.num_train
    ours, bare = (images / statistics.median(column) for column in zip(*times, strict=True))
    ratio = statistics.median(bare_s / ours_s for ours_s, bare_s in times)
    return Throughput(config.data.train_px, config.compile, ours, bare, ratio, peak_mb(runtime))


def peak_mb(runtime: Runtime) -> float:
    """2^20 bytes of the device, or of the process on a CPU."""
    return torch.cuda.max_memory_allocated() / MB if runtime.device.type == "cuda" else memory_peak_mb()


def traced(runtime: Runtime, device: str, config: RunConfig, folder: Path) -> Trace:
    """An epoch whose last steps are recorded, as ``profile.steps`` records them in a run."""
    runtime = on_device(runtime, device)
    ours = Ours(config, runtime, folder)
    with ours.tracker() as tracker:
        timed(lambda: ours.epoch()(tracker), runtime)
    files = folder / PROFILE / f"rank_{runtime.rank}"
    events = json.loads(decompress(files.with_suffix(".trace.json.gz").read_bytes()))["traceEvents"]
    worker = json.loads(files.with_suffix(".json").read_text(encoding="utf-8"))
    communication, hidden = worker["communication_ms"], worker["hidden_ms"]
    return Trace(
        num_steps=worker["num_steps"],
        synchronisations=num_synchronisations(events),
        idle_share=idle_share(events),
        step_ms=worker["step_ms"],
        communication_ms=communication,
        hidden_share=hidden / communication if communication else None,
    )


def num_synchronisations(events: list[dict[str, Any]]) -> int:
    """Times that the host waited for the device, inside recorded steps."""
    steps = [event for event in events if event.get("name", "").startswith("ProfilerStep#") and event["ph"] == "X"]
    first, last = min(step["ts"] for step in steps), max(step["ts"] + step["dur"] for step in steps)
    waits = (event for event in events if event.get("name") in SYNCHRONISATIONS and event["ph"] == "X")
    return sum(first <= event["ts"] < last for event in waits)


def idle_share(events: list[dict[str, Any]]) -> float | None:
    """The part of the time in which no kernel ran."""
    kernels = union((event["ts"], event["ts"] + event["dur"]) for event in events if event.get("cat") == "kernel")
    if not kernels:
        return None
    whole = union([(kernels[0][0], kernels[-1][1])])
    return length(difference(whole, kernels)) / length(whole)


def checkpoint_stall(runtime: Runtime, device: str, config: RunConfig, rounds: int, folder: Path) -> float:
    """Median seconds that a checkpoint holds up the training; the first, which allocates, does not count."""
    runtime = on_device(runtime, device)
    ours, stalls = Ours(config, runtime, folder), []
    writer = Writer(folder / "checkpoints", [0], keep_last=1)
    with ours.tracker() as tracker:
        ours.epoch()(tracker)
    for number in range(rounds + 1):
        state = {"model": ours.model.state_dict(), "strategy": ours.strategy.state()}
        writer.write([state], Manifest(number + 1, 1, 1, {}, {}))
        stalls.append(writer.stall_s)
        writer.wait()
    return statistics.median(stalls[1:])


def decoding(runtime: Runtime, device: str, root: Path, num_classes: int, px: int, batch: int) -> float:
    """DALI's images/s of the second epoch of an image folder; on a GPU with nvJPEG."""
    runtime = on_device(runtime, device)
    data = DataConfig(
        name="folder", kind=DataKind.folder, root=str(root), num_classes=num_classes, train_px=px, eval_px=px,
        eval_resize_px=px, mean=[0.5] * 3, std=[0.25] * 3, backend=DataBackend.dali,
    )  # fmt: skip
    loader = build_train_loader(data, seed=1, global_batch_size=batch, channels_last=True, worker=runtime)
    read_epoch(loader, 0, runtime)
    start = time.perf_counter()
    num_images = read_epoch(loader, 1, runtime)
    seconds = time.perf_counter() - start
    loader.close()
    return num_images / seconds


def read_epoch(loader: TrainLoader, epoch: int, runtime: Runtime) -> int:
    """The number of images that came."""
    num_images = sum(len(batch.images) for batch in loader.batches(epoch))
    if runtime.device.type == "cuda":
        torch.cuda.synchronize()
    return num_images


def on_fresh_workers(function: Any, workers: int, *arguments: Any, use_nccl: bool = False) -> Any:
    """Rank 0's answer; the last argument of ``function`` is an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder) / "run"
        runs.mkdir()
        return on_workers(function, workers, Path(folder), *arguments, runs, timeout_s=TIMEOUT_S, use_gpu=use_nccl)[0]


@app.command()
def main(
    device: Annotated[str, typer.Option(help="cuda or cpu.")] = "cuda",
    model: Annotated[str, typer.Option(help="Name of a model.")] = "resnet50",
    sizes: Annotated[list[int], typer.Option("--px", help="Pixels of the images.")] = [176, 224],  # noqa: B006
    batch: Annotated[int, typer.Option(help="Images of a step, on one worker.")] = 256,
    steps: Annotated[int, typer.Option(help="Of each loop in a round; those of the trace, besides.")] = 30,
    rounds: Annotated[int, typer.Option(help="Of both loops in turns.")] = 5,
    precision: Annotated[Precision, typer.Option(help="Of the forward pass.")] = Precision.bf16,
    compile_: Annotated[bool, typer.Option("--compile/--no-compile", help="Also with torch.compile.")] = True,
    images: Annotated[Path | None, typer.Option(help="Image folder for DALI.")] = None,
    num_classes: Annotated[int, typer.Option(help="Of the image folder.")] = 1000,
) -> None:
    """Measure, and print a JSON line for each figure."""
    if device == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter("no GPU; --device cpu measures the same on a CPU, smaller", param_hint="--device")
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    say(
        "device",
        {"name": name, "torch": torch.__version__, "model": model, "batch": batch, "precision": precision.value},
    )
    for px in sizes:
        for compiled in (False, True) if compile_ else (False,):
            config = config_of(model, px, batch, steps, compiled, precision)
            say("throughput", asdict(on_fresh_workers(throughput, 1, device, config, rounds)))
    config = replace(config_of(model, sizes[0], batch, steps, False, precision), profile=ProfileConfig(steps - 2, 1))
    say("trace, one worker", asdict(on_fresh_workers(traced, 1, device, config)))
    use_nccl = device == "cuda" and torch.cuda.device_count() > 1
    workers, name = (2, "ring") if use_nccl else (3, "complete")  # gloo sums what is on a GPU, but exchanges nothing
    images_of_all = replace(config.data, num_train=workers * steps * batch)
    topology = DecentralizedConfig(name=name)
    together = replace(config, topology=topology, global_batch_size=workers * batch, data=images_of_all)
    trace = on_fresh_workers(traced, workers, device, together, use_nccl=use_nccl)
    say(f"trace, {workers} workers, {'nccl' if use_nccl else 'gloo'}", asdict(trace))
    stall = on_fresh_workers(checkpoint_stall, 1, device, replace(config, profile=ProfileConfig()), rounds)
    say("checkpoint", {"stall_ms": 1e3 * stall})
    if images is not None:
        with tempfile.TemporaryDirectory() as folder:
            asked = (device, images, num_classes, sizes[0], batch)
            per_s = on_workers(decoding, 1, Path(folder), *asked, timeout_s=TIMEOUT_S)[0]
        say("DALI", {"images_per_s": per_s})


def say(what: str, values: dict[str, Any]) -> None:
    """A line."""
    print(json.dumps({"what": what} | values), flush=True)


if __name__ == "__main__":
    app()
