"""The command ``imgnet``: what is done with runs beside starting them."""

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

RunDirs = Annotated[list[Path], typer.Argument(help="Run directories, such as multirun_outputs/<date>/<time>/0.")]


@app.callback()
def main() -> None:
    """Look at runs. They are started with run.py; see `python run.py --help`."""


@app.command()
def compare(runs: RunDirs) -> None:
    """Print one row for each run: what was chosen, and what came out."""
    from imgnet.results.table import show_comparison

    show_comparison(_existing(runs))


@app.command()
def plot(
    runs: RunDirs,
    out: Annotated[Path, typer.Option("--out", "-o", help="The picture: .png, .pdf or .svg.")] = Path("curves.png"),
) -> None:
    """Draw accuracy over epochs and over time, and the distance between workers."""
    from imgnet.results.plot import plot_runs

    try:
        plot_runs(_existing(runs), out)
    except ValueError as error:
        _refuse(str(error))
    typer.echo(f"drawn: {out}")


def _existing(runs: list[Path]) -> list[Path]:
    for run in runs:
        if not (run / "run.json").is_file():
            _refuse(f"{run}: no run directory (it has no run.json)")
    return runs


def _refuse(line: str) -> None:
    typer.echo(line, err=True)
    sys.exit(2)
