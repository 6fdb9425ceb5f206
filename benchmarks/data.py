"""Images per second of our loaders beside torchvision's, timm's, DALI's own and FFCV's, all measured in one run.

    python -m benchmarks.data --threads 2

Every loader gives normalised float32 batches of 176-pixel crops on the CPU, with the same number of decoding threads or
processes, from files that are in memory. The rounds take turns, and each loader's best one counts, since other work on
the machine can only slow it; beside it stand the median of the rounds, the least and the most. CPU time (of all threads
and processes) is steadier than time on a busy machine.
FFCV and timm are measured where they are installed. The images are drawn once and kept in --folder.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.spread import spread
from imgnet.config import DataBackend, DataConfig, DataKind
from imgnet.data.backends.decode import decode
from imgnet.data.checks import dali_is_installed
from imgnet.data.loader import build_train_loader
from imgnet.data.sampling import order
from imgnet.data.sources import shards
from imgnet.data.sources.shards import ROW, FileRecord, Manifest, ShardSource, SplitRecord
from imgnet.data.staging import stage
from imgnet.runtime import Runtime

PX, BATCH = 176, 128
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
NUM_CLASSES, MAX_SIZE, QUALITY, FULL_QUALITY = 8, 256, 90, 95
NUM_IMAGENET = 1_281_167
CPU = torch.device("cpu")

Epoch = Callable[[], int]
"""Reads an epoch and returns the number of images."""


@dataclass
class Contestant:
    """A loader and what was measured of it."""

    name: str
    make: Callable[[], Epoch]
    epoch: Epoch | None = None
    images_per_s: list[float] = field(default_factory=list)
    """In each round."""
    cpu_ms: list[float] = field(default_factory=list)
    """CPU time for an image, in milliseconds, in each round."""

    def measure(self) -> None:
        """One epoch. The first call also makes the loader and reads an epoch that does not count."""
        if self.epoch is None:
            self.epoch = self.make()
            self.epoch()
        cpu, start = cpu_seconds(), time.perf_counter()
        num = self.epoch()
        seconds = time.perf_counter() - start
        self.images_per_s.append(num / seconds)
        self.cpu_ms.append(1000 * (cpu_seconds() - cpu) / num)


@dataclass(frozen=True)
class Images:
    """The same images in every form that a loader reads."""

    root: Path
    num_threads: int

    @property
    def folder(self) -> Path:
        """Files in ImageNet's layout, 500 x 375."""
        return self.root / "folder"

    def shards(self, size: str) -> Path:
        """Tar shards; size is ``full``, ``256`` or ``raw 256``."""
        return self.root / f"shards-{size.replace(' ', '-')}"

    def beton(self, size: str) -> Path:
        """The training images in FFCV's format, of the same sizes."""
        return self.root / f"{size.replace(' ', '-')}.beton"


def cpu_seconds() -> float:
    """CPU time of this process and its living children so far."""
    pids, seconds = [os.getpid()], 0.0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            tasks = Path(f"/proc/{pid}/task").iterdir()
            pids += [int(child) for task in tasks for child in (task / "children").read_text().split()]
        except FileNotFoundError:
            continue
        seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds


def prepare(images: Images, per_class: int) -> None:
    """Draw the images, and shard them, unless that was done before."""
    tool = [sys.executable, "-m", "imgnet", "data"]
    src, full, small, raw = images.folder, *map(images.shards, ("full", "256", "raw 256"))
    numbers = ["--num-classes", str(NUM_CLASSES), "--per-class", str(per_class)]
    shrink = ["--max-size", str(MAX_SIZE), "--quality", str(QUALITY)]
    subprocess.run([*tool, "synthesize", src, *numbers], check=True)
    subprocess.run([*tool, "shard", src, full, "--num-shards", "4"], check=True)
    subprocess.run([*tool, "shard", src, small, "--num-shards", "4", *shrink], check=True)
    subprocess.run([*tool, "shard", src, raw, "--num-shards", "4", *shrink[:2], "--format", "raw"], check=True)


def ours(images: Images, backend: DataBackend, root: Path, worker: Runtime | None = None) -> Epoch:
    """This package's training batches, of one rank where ``worker`` is given."""
    config = DataConfig(
        name="benchmark",
        kind=DataKind.folder if root == images.folder else DataKind.shards,
        root=str(root),
        backend=backend,
        num_classes=NUM_CLASSES,
        train_px=PX,
        eval_px=224,
        eval_resize_px=256,
        mean=MEAN,
        std=STD,
        num_workers=images.num_threads,
    )
    worker = worker or Runtime(0, 1, 0, 1, CPU, images.num_threads)
    loader = build_train_loader(config, seed=1, global_batch_size=BATCH, channels_last=True, worker=worker)
    epochs = iter(range(1_000_000))
    return lambda: count(batch.images for batch in loader.batches(next(epochs)))


def count(batches: Iterator[torch.Tensor]) -> int:
    """Images in all batches, each checked to be what is compared."""
    num = 0
    for batch in batches:
        assert batch.shape[1:] == (3, PX, PX), batch.shape
        assert batch.dtype == torch.float32, batch.dtype
        num += len(batch)
    return num


def decoding_alone(images: Images, size: str) -> Epoch:
    """The decoder of torchvision on bytes in memory: nothing is cut, resized or copied."""
    source = ShardSource(images.shards(size), "train", NUM_CLASSES)
    data = [source.read(index) for index in range(len(source))]
    pool = ThreadPoolExecutor(images.num_threads)
    return lambda: sum(1 for _ in pool.map(decode, data))


def torchvision_loader(images: Images) -> Epoch:
    """ImageFolder with DataLoader, as in torchvision's own training example."""
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    steps = [
        transforms.RandomResizedCrop(PX),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
    loader = DataLoader(
        ImageFolder(str(images.folder / "train"), transforms.Compose(steps)),
        batch_size=BATCH,
        shuffle=True,
        num_workers=images.num_threads,
        drop_last=True,
        persistent_workers=True,
    )
    return lambda: count(batch for batch, _ in loader)


def timm_loader(images: Images) -> Epoch:
    """The loader of timm with its prefetcher, without the augmentations that the others do not have."""
    from timm.data import create_dataset, create_loader  # pyright: ignore[reportPrivateImportUsage]

    dataset: Any = create_dataset("", root=str(images.folder / "train"))
    loader = create_loader(
        dataset,
        input_size=(3, PX, PX),
        batch_size=BATCH,
        is_training=True,
        color_jitter=0,
        interpolation="bilinear",
        mean=tuple(MEAN),
        std=tuple(STD),
        num_workers=images.num_threads,
        persistent_workers=True,
        pin_memory=False,
        device=CPU,
    )
    return lambda: count(batch for batch, _ in loader)


def plain_dali(
    images: Images, size: str, from_shards: bool, worker: Runtime | None = None, is_mapped: bool = True
) -> Epoch:
    """DALI with its own reader, shuffling and random crops, as in its documentation."""
    rank, num_ranks = (worker.rank, worker.world_size) if worker else (0, 1)
    part: Any = {"random_shuffle": True, "name": "r", "shard_id": rank, "num_shards": num_ranks}
    part["dont_use_mmap"] = not is_mapped
    from nvidia.dali import fn as typed_fn
    from nvidia.dali import pipeline_def
    from nvidia.dali.plugin.pytorch import DALIGenericIterator
    from nvidia.dali.types import DALIDataType, DALIImageType, DALIInterpType

    fn: Any = typed_fn
    on_cpu: Any = None

    @pipeline_def(batch_size=BATCH // num_ranks, num_threads=images.num_threads, device_id=on_cpu)
    def graph() -> tuple[Any, ...]:
        if from_shards:
            paths = sorted(str(path) for path in (images.shards(size) / "train").glob("*.tar"))
            jpegs, labels = fn.readers.webdataset(paths=paths, ext=["jpg", "cls"], **part)
        else:
            jpegs, labels = fn.readers.file(file_root=str(images.folder / "train"), **part)
        pixels = fn.decoders.image_random_crop(
            jpegs, device="cpu", output_type=DALIImageType.RGB, random_area=[0.08, 1.0]
        )
        pixels = fn.resize(pixels, size=[PX, PX], interp_type=DALIInterpType.INTERP_TRIANGULAR)
        batch = fn.crop_mirror_normalize(
            pixels,
            dtype=DALIDataType.FLOAT,
            output_layout="CHW",
            mean=[255 * value for value in MEAN],
            std=[255 * value for value in STD],
            mirror=fn.random.coin_flip(),
        )
        return batch, labels

    loader = DALIGenericIterator([graph()], ["images", "labels"], reader_name="r", auto_reset=True)
    return lambda: count(batch[0]["images"] for batch in loader)


def ffcv_loader(images: Images, size: str) -> Epoch:
    """FFCV on the same pixels, raw or encoded again at the same quality, held in memory by its own cache."""
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder  # pyright: ignore[reportMissingImports]
    from ffcv.loader import Loader, OrderOption  # pyright: ignore[reportMissingImports]
    from ffcv.transforms import (  # pyright: ignore[reportMissingImports]
        NormalizeImage,
        RandomHorizontalFlip,
        ToTensor,
        ToTorchImage,
    )

    path = images.beton(size)
    if not path.exists():
        write_ffcv(images, size, path)
    mean, std = (255 * np.array(values) for values in (MEAN, STD))
    steps = [
        RandomResizedCropRGBImageDecoder((PX, PX)),
        RandomHorizontalFlip(),
        NormalizeImage(mean, std, np.float32),  # on a CPU it must come before ToTensor, or the loader never returns
        ToTensor(),
        ToTorchImage(),
    ]
    loader = Loader(
        str(path),
        batch_size=BATCH,
        num_workers=images.num_threads,
        order=OrderOption.RANDOM,
        os_cache=True,
        drop_last=True,
        pipelines={"image": steps, "label": None},
    )
    return lambda: count(batch[0] for batch in loader)


def write_ffcv(images: Images, size: str, path: Path) -> None:
    """What the shards hold, in FFCV's format: raw pixels as they are, others are encoded again by its writer."""
    from ffcv.fields import IntField, RGBImageField  # pyright: ignore[reportMissingImports]
    from ffcv.writer import DatasetWriter  # pyright: ignore[reportMissingImports]
    from PIL import Image

    source = ShardSource(images.shards(size), "train", NUM_CLASSES)

    class Samples:
        def __len__(self) -> int:
            return len(source)

        def __getitem__(self, index: int) -> tuple[Any, int]:
            pixels = decode(source.read(index)).permute(1, 2, 0).contiguous().numpy()
            return Image.fromarray(pixels), int(source.labels[index])

    quality = FULL_QUALITY if size == "full" else QUALITY
    mode = "jpg" if source.pixels is None else "raw"
    fields = {"image": RGBImageField(write_mode=mode, jpeg_quality=quality), "label": IntField()}
    unfinished = path.with_suffix(".part")
    DatasetWriter(str(unfinished), fields, num_workers=1).from_indexed_dataset(Samples())
    unfinished.rename(path)


def contestants(images: Images) -> Iterator[Contestant]:
    """All of them, in the order of the table."""
    full, small, raw = map(images.shards, ("full", "256", "raw 256"))
    torchvision, dali = DataBackend.torchvision, DataBackend.dali
    yield Contestant("decoding alone, full size", lambda: decoding_alone(images, "full"))
    yield Contestant("torchvision ImageFolder", lambda: torchvision_loader(images))
    if find_spec("timm"):
        yield Contestant("timm", lambda: timm_loader(images))
    if dali_is_installed():
        yield Contestant("plain DALI, folder", lambda: plain_dali(images, "full", from_shards=False))
        yield Contestant("plain DALI, shards", lambda: plain_dali(images, "full", from_shards=True))
    if find_spec("ffcv"):
        yield Contestant("FFCV, full size", lambda: ffcv_loader(images, "full"))
    yield Contestant("ours: torchvision, folder", lambda: ours(images, torchvision, images.folder))
    if dali_is_installed():
        yield Contestant("ours: DALI, folder", lambda: ours(images, dali, images.folder))
        yield Contestant("ours: DALI, shards", lambda: ours(images, dali, full))
    yield Contestant("decoding alone, 256", lambda: decoding_alone(images, "256"))
    if dali_is_installed():
        yield Contestant("plain DALI, 256", lambda: plain_dali(images, "256", from_shards=True))
    if find_spec("ffcv"):
        yield Contestant("FFCV, 256", lambda: ffcv_loader(images, "256"))
    yield Contestant("ours: torchvision, shards 256", lambda: ours(images, torchvision, small))
    if dali_is_installed():
        yield Contestant("ours: DALI, shards 256", lambda: ours(images, dali, small))
    if find_spec("ffcv"):
        yield Contestant("FFCV, raw 256", lambda: ffcv_loader(images, "raw 256"))
    yield Contestant("ours: torchvision, raw 256", lambda: ours(images, torchvision, raw))
    if dali_is_installed():
        yield Contestant("ours: DALI, raw 256", lambda: ours(images, dali, raw))


@dataclass(frozen=True)
class Target:
    """What one of ours (the fastest of some) has to reach, as a multiple of a peer."""

    ours: tuple[str, ...]
    peer: str
    least: float


OURS_FULL = ("ours: torchvision, folder", "ours: DALI, folder", "ours: DALI, shards")
OURS_256 = ("ours: torchvision, shards 256", "ours: DALI, shards 256")
TARGETS = (
    Target(("ours: torchvision, folder",), "torchvision ImageFolder", 1.0),
    Target(("ours: DALI, folder",), "plain DALI, folder", 0.95),
    Target(("ours: DALI, shards",), "plain DALI, folder", 1.0),
    Target(("ours: DALI, shards",), "plain DALI, shards", 1.0),
    Target(("ours: DALI, shards 256",), "plain DALI, folder", 2.0),
    Target(OURS_FULL, "FFCV, full size", 1.0),
    Target(OURS_256, "FFCV, 256", 1.0),
    Target(OURS_FULL, "decoding alone, full size", 0.92),
    Target(OURS_256, "decoding alone, 256", 0.80),
    Target(("ours: torchvision, raw 256", "ours: DALI, raw 256"), "FFCV, raw 256", 1.2),
)


def show(measured: dict[str, Contestant]) -> None:
    """The table, and each target beside what was reached."""
    print("\n| loader | images/s | in the rounds | CPU ms/image |\n| --- | ---: | ---: | ---: |")
    for one in measured.values():
        rates = one.images_per_s
        print(f"| {one.name} | {max(rates):,.0f} | {spread(rates, ',.0f')} | {min(one.cpu_ms):.2f} |")
    print("\n| ours over peer | by time | in the rounds | by CPU time | target |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for target in TARGETS:
        found = [measured[name] for name in target.ours if name in measured]
        peer = measured.get(target.peer)
        if found and peer:
            best = max(found, key=lambda one: max(one.images_per_s))
            by_time = max(best.images_per_s) / max(peer.images_per_s)
            by_cpu = min(peer.cpu_ms) / min(best.cpu_ms)
            in_rounds = spread([own / its for own, its in zip(best.images_per_s, peer.images_per_s, strict=True)])
            print(f"| {best.name} / {peer.name} | {by_time:.2f} | {in_rounds} | {by_cpu:.2f} | {target.least:.2f} |")


def show_sizes(images: Images) -> None:
    """What the training images take on the disk in each form, beside shards of JPEGs at 256."""
    sizes = ("full", "256", "raw 256")
    forms = {f"shards {size}": images.shards(size) / "train" for size in sizes}
    forms |= {f"FFCV, {size}": images.beton(size) for size in sizes}
    taken = {name: mb_of(path) for name, path in forms.items() if path.exists()}
    print("\n| on the disk | MB | of shards 256 |\n| --- | ---: | ---: |")
    for name, mb in taken.items():
        print(f"| {name} | {mb:,.0f} | {mb / taken['shards 256']:.2f} |")


def mb_of(path: Path) -> float:
    """Of a file, or of all files in a folder."""
    files = [path, *path.rglob("*")] if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6


def show_index(root: Path) -> None:
    """What the index of all of ImageNet costs."""
    write_imagenet_index(root)
    start = time.perf_counter()
    source = ShardSource(root, "train", 1000)
    opened = time.perf_counter() - start
    private = private_mb()
    assert int(source.labels.sum()) == NUM_IMAGENET * (NUM_IMAGENET - 1) // 2  # reads every page
    private, mapped = private_mb() - private, (root / "train" / shards.INDEX).stat().st_size / 1e6
    start = time.perf_counter()
    order.epoch_order(1, 0, len(source))
    ordered = time.perf_counter() - start
    print(
        f"\nindex of {NUM_IMAGENET:,} images: opened in {opened:.3f} s (at most 1), {mapped:.0f} MB of pages that all"
    )
    print(
        f"processes of a node share (at most 100), {private:.0f} MB in each; an epoch's order in {ordered:.2f} s (0.5)"
    )


def private_mb() -> float:
    """Memory of this process that is its own, and no page of a file, in MB."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) / 1000


def write_imagenet_index(root: Path) -> None:
    """An index as long as ImageNet's, with nothing behind it."""
    rows = np.zeros(NUM_IMAGENET, dtype=ROW)
    rows["label"] = np.arange(NUM_IMAGENET)
    records = {}
    for split in ("train", "val"):
        (root / split).mkdir(parents=True, exist_ok=True)
        np.save(root / split / shards.INDEX, rows)
        size = (root / split / shards.INDEX).stat().st_size
        records[split] = SplitRecord(NUM_IMAGENET, FileRecord(shards.INDEX, size, 0), [])
    Manifest([f"n{label}" for label in range(1000)], {}, records).write(root)


def show_staging(images: Images, rounds: int) -> None:
    """How long staging takes beside cp, with files in memory and each copy new."""
    root, copies = images.shards("full"), images.root / "staged"
    seconds: dict[str, list[float]] = {"cp": [], "stage": []}
    for _ in range(rounds):
        for name, times in seconds.items():
            shutil.rmtree(copies, ignore_errors=True)
            copies.mkdir()
            os.sync()
            start = time.perf_counter()
            if name == "cp":
                subprocess.run(["cp", "-r", root, copies / "shards"], check=True)
            else:
                stage(root, str(copies.resolve()))
            times.append(time.perf_counter() - start)
    shutil.rmtree(copies)
    taken, copied = seconds["stage"], seconds["cp"]
    print(
        f"\nstaging {mb_of(root):.0f} MB: {median(taken):.2f} s, checksums included; cp {median(copied):.2f} s; ",
        end="",
    )
    print(f"{spread([cp / own for cp, own in zip(copied, taken, strict=True)])} of cp's speed (at least 0.8)")


def main() -> None:
    """Draw, measure in turns, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("data/benchmark"), help="where the images are kept")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each loader")
    parser.add_argument("--per-class", type=int, default=240, help=f"images of each of {NUM_CLASSES} classes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="loaders in whose name this pattern is found")
    parser.add_argument("--contention", type=int, nargs="+", help="beside other work instead, with so many ranks")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    images = Images(options.folder, options.threads)
    prepare(images, options.per_class)
    if options.contention:
        from benchmarks.contention import show_contention  # which imports this module

        show_contention(images, options.contention, options.rounds)
        return
    chosen = [one for one in contestants(images) if re.search(options.only, one.name)]
    for number in range(options.rounds):
        for one in chosen:
            one.measure()
        print(f"round {number + 1} of {options.rounds}; load {os.getloadavg()[0]:.1f}", file=sys.stderr)
    show({one.name: one for one in chosen})
    show_sizes(images)
    show_staging(images, options.rounds)
    show_index(options.folder / "imagenet-index")
    os._exit(0)  # FFCV's threads do not end


if __name__ == "__main__":
    main()
