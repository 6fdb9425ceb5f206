"""The command ``imgnet``: what is done with runs beside starting them."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from imgnet.data.cli import app as data_app

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(data_app, name="data", help="Prepare images: from archives to tar shards.")

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
