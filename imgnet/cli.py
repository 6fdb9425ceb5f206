"""The command ``imgnet``: what is done with runs beside starting them."""

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

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

    try:
        plot_runs(_existing(runs), out)
    except ValueError as error:
        _refuse(str(error))
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
