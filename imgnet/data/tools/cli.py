"""The commands ``imgnet data ...``. Each imports what it needs when it runs, so that ``--help`` is quick."""

import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

from imgnet.config import ConfigError
from imgnet.runtime import available_cores

if TYPE_CHECKING:
    from imgnet.data.tools.verify import Verified

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="markdown")

Workers = Annotated[int | None, typer.Option(min=1, help="Processes; as many as there are cores if not given.")]


@app.callback()
def main() -> None:
    """Prepare images: from ImageNet's archives to tar shards that are read in place.

    The usual way is **prepare** (archives to folders), **verify**, **shard**, and then
    `python run.py data.kind=shards data.root=<shards> data.stage_to='$TMPDIR'`.
    Every command can be killed at any moment and started again with the same arguments: it goes on where it was,
    and what has its final name is whole.
    """


@app.command()
def prepare(
    archives: Annotated[Path, typer.Option(help="Folder with the three files that image-net.org gives.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("data/Imagenet"),
    workers: Workers = None,
) -> None:
    """Extract ImageNet's archives to train/<wnid>, val/<wnid>, dev/ and meta.bin.

    Needed are ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz, together 145 GB, and
    as much free space. Nothing is unpacked twice: training images go from the archive to their folder in one step.
    """
    from imgnet.data.tools.archives import archive_bytes, prepare_imagenet

    _run("preparing", "bytes", lambda: (archive_bytes(archives), prepare_imagenet(archives, out, _cores(workers))))
    typer.echo(f"done: use it with data.root={out}; look at it with: imgnet data verify {out}")


@app.command()
def verify(
    path: Annotated[Path, typer.Argument(help="A folder of images, or of shards.")],
    workers: Workers = None,
) -> None:
    """Count classes and images, compare checksums, decode every image, and list what is wrong.

    Shards are compared with their checksums, and every image in them too. ImageNet is known by its classes and must
    have 1,281,167 training and 50,000 validation images. Ends with status 1 where something is wrong.
    """
    from imgnet.data.tools.verify import open_all
    from imgnet.data.tools.verify import verify as look

    problems: list[str] = []

    def work() -> tuple[int, Iterable[int]]:
        sources = open_all(path)
        return sum(map(len, sources.values())), note(look(path, sources, _cores(workers)))

    def note(steps: Iterable["Verified"]) -> Iterator[int]:
        for verified in steps:
            problems.extend(verified.problems)
            yield verified.num_images

    _run("verifying", "images", work)
    for problem in problems:
        typer.echo(problem)
    typer.echo(f"{len(problems)} problems" if problems else f"{path} is whole")
    sys.exit(1 if problems else 0)


@app.command()
def shard(
    src: Annotated[Path, typer.Argument(help="Folder with train/<class>/* and val/<class>/*.")],
    dst: Annotated[Path, typer.Argument(help="Folder to write; new, or begun by the same command.")],
    num_shards: Annotated[int, typer.Option(min=1, help="Shards of train; val gets shards of the same size.")],
    max_size: Annotated[
        int | None, typer.Option(min=16, metavar="PIXELS", help="Shrink the shorter side to this where it is larger.")
    ] = None,
    quality: Annotated[
        int | None, typer.Option(min=1, max=95, help="JPEG quality of what is shrunk; 90 if not given.")
    ] = None,
    kept_as: Annotated[
        Literal["jpeg", "raw"],
        typer.Option("--format", help="raw: pixels that need no decoding; wants --max-size."),
    ] = "jpeg",
    workers: Workers = None,
) -> None:
    """Write an image folder as tar shards, with an index and checksums.

    Shards are read in place, at random, without being unpacked: 1.3 million small files become a few hundred large
    ones, which file systems and copies like better. They follow the WebDataset convention (key.jpg, key.cls).
    Sample number i stays sample number i, so that training sees the same crops in the same order.

    Without **--max-size** the images are kept byte for byte. With **--max-size 256** they load several times faster,
    and crops are cut from the smaller images: results differ slightly, so state it with them. About 150 MB to a shard
    is a good size: --num-shards 1024 for ImageNet.

    With **--format raw --max-size 256** the pixels themselves are kept, without a second JPEG, for nodes whose cores
    cannot decode as fast as their GPUs train: several times the bytes, and almost only resizing is left to do.
    """
    from imgnet.data.tools.sharding import Recipe, open_splits, shard_folder

    def work() -> tuple[int, Iterable[int]]:
        recipe = Recipe(max_size, 90 if quality is None and kept_as == "jpeg" else quality, kept_as)
        total = sum(map(len, open_splits(src).values()))
        return total, shard_folder(src, dst, num_shards=num_shards, recipe=recipe, num_workers=_cores(workers))

    _run("sharding", "images", work)
    typer.echo(f"done: use it with data.kind=shards data.root={dst}")


@app.command()
def synthesize(
    dst: Annotated[Path, typer.Argument(help="Folder to write.")],
    num_classes: Annotated[int, typer.Option(min=2)],
    per_class: Annotated[int, typer.Option(min=1, help="Training images of each class; val gets a tenth of it.")],
    width: Annotated[int, typer.Option(min=16, help="Pixels.")] = 500,
    height: Annotated[int, typer.Option(min=16, help="Pixels.")] = 375,
    likeness: Annotated[
        float, typer.Option(help="How much images of a class have in common, 0 to 1; with 0 none can be learned.")
    ] = 0.0,
    workers: Workers = None,
) -> None:
    """Draw JPEGs with the size and weight of ImageNet's (500 x 375, 110 KB), for benchmarks and tests.

    The same arguments draw the same images.
    """
    from imgnet.data.tools.synthesize import num_images, synthesize

    def work() -> tuple[int, Iterable[int]]:
        if not 0 <= likeness <= 1:  # nan as well
            raise ValueError(f"--likeness {likeness:g}: it is from 0 to 1")
        numbers = {"num_classes": num_classes, "per_class": per_class, "width": width, "height": height}
        drawn = synthesize(dst, **numbers, likeness=likeness, num_workers=_cores(workers))
        return num_images(num_classes, per_class), drawn

    _run("drawing", "images", work)
    typer.echo(f"done: use it with data.root={dst} data.num_classes={num_classes}")


def _cores(workers: int | None) -> int:
    return available_cores() if workers is None else workers


def _run(title: str, unit: str, work: Callable[[], tuple[int, Iterable[int]]]) -> None:
    """Show how ``work`` gets on; what is wrong with its arguments becomes a line for each problem and exit code 2."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    counts = (DownloadColumn(),) if unit == "bytes" else (MofNCompleteColumn(), TextColumn(unit))
    columns = (TextColumn("{task.description}"), BarColumn(), *counts, TimeRemainingColumn())
    try:
        total, steps = work()
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task(title, total=total)
            for num in steps:
                progress.advance(task, num)
    except BrokenProcessPool:
        refuse(RuntimeError("a process of this command was killed, for want of memory perhaps; try fewer --workers"))
    except (ConfigError, ValueError, OSError) as error:
        refuse(error)


def refuse(error: Exception) -> NoReturn:
    """Print what is wrong, one line for each problem, and end."""
    typer.echo(str(error), err=True)
    sys.exit(2)
