"""The command ``imgnet``: what is done with runs beside starting them."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from imgnet.checkpoint.cli import app as checkpoint_app
from imgnet.config import ConfigError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

app.add_typer(checkpoint_app, name="checkpoint")

Runs = Annotated[list[Path], typer.Argument(help="Run directories, or the folders of sweeps.")]


@app.callback()
def main() -> None:
    """Look at runs. They are started with run.py; see `python run.py --help`."""


@app.command()
def compare(runs: Runs) -> None:
    """Print one row for each run: what was chosen, and what came out."""
    from imgnet.results.table import show_comparison

    show_comparison(_existing(runs))


@app.command()
def plot(
    runs: Runs,
    out: Annotated[Path, typer.Option("--out", "-o", help="The picture: .png, .pdf or .svg.")] = Path("curves.png"),
) -> None:
    """Draw accuracy over epochs and over time, and the distance between workers."""
    from imgnet.results.plot import plot_runs

    found = _existing(runs)
    with_curves = [run for run in found if (run / "metrics.csv").is_file()]
    if not with_curves:
        _refuse(f"{runs[0]}: no metrics.csv there yet; the first epoch writes it")
    if out.suffix not in (".png", ".pdf", ".svg"):
        _refuse(f"--out {out}: the picture must end in .png, .pdf or .svg")
    plot_runs(with_curves, out)
    for run in found:
        if run not in with_curves:
            typer.echo(f"left out, for it has no metrics yet: {run}", err=True)
    typer.echo(f"drawn: {out}")


@app.command()
def status(
    path: Annotated[Path, typer.Argument(help="A run, a sweep, or a folder of sweeps.")] = Path("multirun_outputs"),
    last: Annotated[int, typer.Option("--last", "-n", help="Show so many runs, the newest.", min=1)] = 50,
) -> None:
    """Show how runs are doing: state in Slurm, epoch, top-1, time left; for a failure its error and its log."""
    from imgnet.launch.observe import observe
    from imgnet.launch.status import show_status

    found = _below(path)
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
    from imgnet.launch.logs import show_log

    if not (run / "run.json").is_file():
        _refuse(f"{run}: no run directory (there is no run.json)")
    try:
        show_log(run, rank=rank, follow=follow)
    except FileNotFoundError as missing:
        _refuse(f"there is no {missing}; `imgnet status {run}` says how the run is doing")
    except KeyboardInterrupt:
        sys.exit(130)


@app.command()
def cancel(runs: Runs) -> None:
    """End jobs of Slurm, whether they wait or run."""
    from imgnet.launch import slurm
    from imgnet.launch.observe import observe

    alive = {one.run_dir: one.job_id for one in observe(_existing(runs)) if one.job_id and not one.is_over}
    if not alive:
        _refuse("none of these runs is in Slurm's queue")
    with _one_line():
        slurm.cancel(list(alive.values()))
    for run, job_id in alive.items():
        typer.echo(f"cancelled: {run}, job {job_id}")


@app.command()
def resubmit(path: Annotated[Path, typer.Argument(help="The folder of a sweep, or one run.")]) -> None:
    """Submit those runs of a sweep again that failed or are missing."""
    from imgnet.launch.resubmit import resubmit as submit_again

    with _one_line():
        submit_again(path)


@contextmanager
def _one_line() -> Iterator[None]:
    """A refusal as lines, without a traceback."""
    try:
        yield
    except ConfigError as error:
        _refuse(str(error))


def _below(path: Path) -> list[Path]:
    """All run directories in a folder, the oldest first."""
    depths = ("run.json", "*/run.json", "*/*/run.json", "*/*/*/run.json")
    found = [file.parent for pattern in depths for file in path.glob(pattern)]
    if not found:
        _refuse(f"{path}: no run directory here or below (there is no run.json)")
    return sorted(found, key=lambda run: (run.parent, len(run.name), run.name))


def _existing(paths: list[Path]) -> list[Path]:
    """The run directories that a user named, those in a sweep's folder included."""
    runs: list[Path] = []
    for path in paths:
        found = [path] if (path / "run.json").is_file() else [file.parent for file in path.glob("*/run.json")]
        if not found:
            _refuse(f"{path}: no run directory, and no sweep that holds some (there is no run.json)")
        runs += sorted(found, key=lambda run: (run.parent, len(run.name), run.name))
    return runs


def _refuse(line: str) -> None:
    typer.echo(line, err=True)
    sys.exit(2)
