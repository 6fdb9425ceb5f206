"""The command ``imgnet``: what is done with runs beside starting them."""

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imgnet import rundir
from imgnet.checkpoint.cli import app as checkpoint_app
from imgnet.config import ConfigError
from imgnet.data.tools.cli import app as data_app
from imgnet.doctor.cli import app as doctor_app
from imgnet.plan.cli import app as plan_app
from imgnet.refuse import refuse, refuse_without_directory
from imgnet.results.cli import app as results_app
from imgnet.tracking.cli import app as tracking_app

if TYPE_CHECKING:
    from imgnet.results.pictures.traffic import Size

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(data_app, name="data", help="Prepare images: from archives to tar shards.")

app.add_typer(checkpoint_app, name="checkpoint")
app.add_typer(results_app)
app.add_typer(plan_app)
app.add_typer(tracking_app)
app.add_typer(doctor_app)
topology_app = typer.Typer(no_args_is_help=True, help="Look at topologies before using them.")
app.add_typer(topology_app, name="topology")

NUM_PARAMETERS_OF_RESNET50 = 25_557_032

Runs = Annotated[list[Path], typer.Argument(help="Run directories, or the folders of sweeps.")]


@app.callback()
def main() -> None:
    """Look at runs and topologies. Runs are started with run.py; see `python run.py --help`."""
    refuse_without_directory()


@app.command()
def status(
    path: Annotated[Path, typer.Argument(help="A run, a sweep, or a folder of sweeps.")] = Path("multirun_outputs"),
    last: Annotated[int, typer.Option("--last", "-n", help="Show so many runs, the newest.", min=1)] = 50,
) -> None:
    """Show how runs are doing, the newest last: state in Slurm, epoch, top-1, time left; of a failure error and log."""
    from imgnet.launch.follow.observe import observe
    from imgnet.launch.follow.status import by_time, show_status

    found = by_time(_below(path))
    show_status(observe(found[-last:]))
    if len(found) > last:
        typer.echo(f"{len(found) - last} older runs are not shown; --last {len(found)} shows all")


@app.command()
def logs(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run is over.")] = False,
    rank: Annotated[int | None, typer.Option(help="The log of this worker; else what the job prints.", min=0)] = None,
) -> None:
    """Print the log of a run."""
    from imgnet.launch.follow.logs import show_log

    if not (run / "run.json").is_file():
        refuse(f"{run}: no run directory (there is no run.json)")
    try:
        show_log(run, rank=rank, follow=follow)
    except FileNotFoundError as missing:
        refuse(f"there is no {missing}; `imgnet status {shlex.quote(str(run))}` says how the run is doing")
    except KeyboardInterrupt:
        sys.exit(130)


@app.command()
def cancel(runs: Runs) -> None:
    """End jobs of Slurm, whether they wait or run."""
    from imgnet.launch.slurm.cancel import cancel_runs

    with _one_line():
        cancel_runs(_existing(runs))


@app.command()
def resubmit(path: Annotated[Path, typer.Argument(help="The folder of a sweep, or one run.")]) -> None:
    """Submit those runs of a sweep again that failed, were cancelled or are missing."""
    from imgnet.launch.slurm.resubmit import resubmit as submit_again

    with _one_line():
        submit_again(path)


@contextmanager
def _one_line() -> Iterator[None]:
    """A refusal as lines, without a traceback; so is a disk that takes nothing more."""
    try:
        yield
    except ConfigError as error:
        refuse(str(error))
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise  # typer knows what to do
        refuse(rundir.not_written(error, Path.cwd()))


def _below(path: Path) -> list[Path]:
    """All run directories in a folder, the oldest first."""
    found = rundir.find(path)
    if not found:
        refuse(f"{path}: no run directory here or below (there is no run.json)")
    return found


@topology_app.command("show")
def show_topology(
    name: Annotated[str, typer.Argument(help="A topology, such as ring or alternating-exp-ring.")],
    world_size: Annotated[int, typer.Option(help="Number of workers.")],
    workers_per_node: Annotated[
        int | None, typer.Option(help="Of which so many share a node; all if not given.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", "-o", help="Of the family, as in YAML: -o self_weight=0.75")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Whose parameters are averaged, by its name in torchvision.")
    ] = None,
    num_parameters: Annotated[int | None, typer.Option(help="Or their number; ResNet-50's if not given.")] = None,
    png: Annotated[Path | None, typer.Option(help="Draw it, too.")] = None,
) -> None:
    """Print rounds, mixing matrices, how fast workers come together, and what each sends in a step."""
    from imgnet.parallel.topology import build_topology
    from imgnet.plan.compose import rhythms_as_published
    from imgnet.results.pictures import topologies

    try:
        topology = build_topology(name, world_size, workers_per_node or world_size, **_options(option or []))
        size = _size(model, num_parameters)
    except ValueError as error:
        refuse(str(error))
    topologies.show_topology(topology, size, rhythms_as_published(is_directed=topology.is_directed))
    if png is not None:
        from imgnet.results.pictures.topology_picture import draw

        draw(topology, png)
        typer.echo(f"drawn: {png}")


def _options(written: list[str]) -> dict[str, Any]:
    """``key=value`` pairs, values read as YAML."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if unreadable := [pair for pair in written if "=" not in pair]:
        raise ValueError(f"--option {unreadable[0]}: write key=value, such as -o self_weight=0.75")
    try:
        options = OmegaConf.to_object(OmegaConf.from_dotlist(written))
    except OmegaConfBaseException as error:
        raise ValueError(f"--option: {error}") from None
    assert isinstance(options, dict)
    return {str(key): value for key, value in options.items()}


def _size(model: str | None, num_parameters: int | None) -> "Size":
    from imgnet.results.pictures.traffic import Size

    if model is not None and num_parameters is not None:
        raise ValueError("give --model or --num-parameters, not both")
    if num_parameters is not None:
        if num_parameters < 1:
            raise ValueError(f"--num-parameters {num_parameters}: at least 1 is needed")
        return Size(num_parameters, "as given")
    if model is None:
        return Size(NUM_PARAMETERS_OF_RESNET50, "ResNet-50")
    import torch

    from imgnet.config import ModelConfig
    from imgnet.models.build import build_model

    with torch.device("meta"):
        built = build_model(ModelConfig(model), 1000, device=torch.device("meta"), channels_last=False)
    shapes = tuple(tuple(parameter.shape) for parameter in built.parameters() if parameter.requires_grad)
    return Size(sum(map(prod, shapes)), model, shapes)


def _existing(paths: list[Path]) -> list[Path]:
    """The run directories that a user named, those in a sweep's folder included."""
    runs: list[Path] = []
    for path in paths:
        found = [path] if (path / "run.json").is_file() else [file.parent for file in path.glob("*/run.json")]
        if not found:
            refuse(f"{path}: no run directory, and no sweep that holds some (there is no run.json)")
        runs += sorted(found, key=lambda run: (run.parent, len(run.name), run.name))
    return runs
