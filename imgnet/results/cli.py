"""``imgnet results``, ``plot``, ``report``, ``diff`` and ``profile``: what came out of runs."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imgnet.refuse import refuse

if TYPE_CHECKING:
    from imgnet.results.files import Problems
    from imgnet.results.groups import Choice
    from imgnet.results.read import Run

app = typer.Typer()

Runs = Annotated[list[Path], typer.Argument(help="Run directories, the folders of sweeps, or folders of these.")]
Filters = Annotated[
    list[str] | None,
    typer.Option("--filter", "-f", metavar="KEY=VALUE[,VALUE]", help="Only runs that are so; may be repeated."),
]
Baseline = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE", help="Compare with the runs that are so, paired by seed; may be repeated."),
]
Target = Annotated[
    float | None,
    typer.Option(help="Top-1 in percent to give the training time to.", min=0, max=100),
]


@app.command()
def results(
    runs: Runs,
    filters: Filters = None,
    baseline: Baseline = None,
    target: Target = None,
    sort: Annotated[
        str | None,
        typer.Option(
            help="By top1, top5, time, predicted, speed, distance, sent, target, seeds or a setting; the best first."
        ),
    ] = None,
    reverse: Annotated[bool, typer.Option("--reverse", help="The worst first.")] = False,
    each: Annotated[bool, typer.Option("--each", help="A row for each run instead of one for all its seeds.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Numbers in full, for a spreadsheet.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="All numbers and runs, for a program.")] = False,
    as_latex: Annotated[bool, typer.Option("--latex", help="For a paper that uses booktabs.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="For a README.")] = False,
) -> None:
    """Print what came out: a row for runs that differ in their seed alone, with 95 % t intervals over seeds.

    Failed and unfinished runs are named and not counted. With --baseline differences are paired by seed.
    """
    from imgnet.results import formats
    from imgnet.results.files import Problems
    from imgnet.results.groups import group_runs
    from imgnet.results.measures import results_of, sort_rows

    if as_csv + as_json + as_latex + as_markdown > 1:
        refuse("one of --csv, --json, --latex and --markdown at a time")
    if reverse and not sort:
        refuse("--reverse: of which order? Give --sort as well")
    problems = Problems()
    with _one_line():
        measured = results_of(group_runs(_read(runs, filters, problems), each=each), target, _choices(baseline))
        measured = sort_rows(measured, sort, reverse=reverse) if sort else measured
    _say(problems)
    if as_csv:
        typer.echo(formats.to_csv(measured), nl=False)
        for note in formats.results_sheet(measured).notes:
            typer.echo(note, err=True)
    elif as_json:
        typer.echo(formats.to_json(measured), nl=False)
    else:
        sheets = formats.sheets(measured)
        write = formats.to_latex if as_latex else formats.to_markdown if as_markdown else None
        typer.echo(write(sheets), nl=False) if write else formats.print_sheets(sheets)


def _read(paths: Sequence[Path], filters: Sequence[str] | None, problems: "Problems") -> list["Run"]:
    """The runs that a user named and that fit; the process ends where there is none."""
    from imgnet.results.groups import chosen
    from imgnet.results.read import read_runs

    found = read_runs(paths, problems)
    if not found:
        _say(problems)
        sys.exit(2)
    return chosen(found, _choices(filters))


def _say(problems: "Problems") -> None:
    for line in problems.lines():
        typer.echo(line, err=True)


def _choices(written: Sequence[str] | None) -> list["Choice"]:
    from imgnet.results.groups import Choice

    return [Choice.parse(one) for one in written or []]


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """A file that cannot be written is refused as one line."""
    try:
        yield
    except OSError as error:
        refuse(f"--out {out}: {(error.strerror or str(error)).lower()}")


@contextmanager
def _one_line() -> Iterator[None]:
    """A refusal as one line, without a traceback."""
    from imgnet.results.groups import UnknownChoiceError

    try:
        yield
    except UnknownChoiceError as error:
        refuse(str(error))


@app.command()
def plot(
    runs: Runs,
    out: Annotated[Path, typer.Option("--out", "-o", help="The picture: .png, .pdf or .svg.")] = Path("curves.png"),
    x: Annotated[str, typer.Option(help="Of --y: epoch, step, time, predicted_time or sent.")] = "epoch",
    y: Annotated[
        list[str] | None,
        typer.Option(help="A column of metrics.csv or steps.jsonl, or val_error1, val_error5; may be repeated."),
    ] = None,
    split: Annotated[bool, typer.Option("--split", help="What a step's time goes into.")] = False,
    pareto: Annotated[str | None, typer.Option(metavar="time|bytes", help="Accuracy against it.")] = None,
    filters: Filters = None,
    each: Annotated[bool, typer.Option("--each", help="A curve for each run, not for all its seeds.")] = False,
) -> None:
    """Draw curves with 95 % t intervals over seeds: an overview, or what --y, --split and --pareto ask for."""
    from imgnet.results.files import Problems
    from imgnet.results.groups import group_runs
    from imgnet.results.pictures import plot as pictures
    from imgnet.results.pictures.curves import X_COLUMNS

    if out.suffix not in pictures.FORMATS:
        refuse(f"--out {out}: the picture must end in {', '.join(pictures.FORMATS)}")
    if x not in X_COLUMNS:
        refuse(f"--x {x}: it is one of {', '.join(X_COLUMNS)}")
    if pareto not in (None, "time", "bytes"):
        refuse(f"--pareto {pareto}: it is time or bytes")
    problems = Problems()
    with _one_line():
        groups = group_runs(_read(runs, filters, problems), each=each)
        panels = pictures.asked_for(groups, x, y or [], split=split, pareto=pareto, problems=problems)
    _say(problems)
    if not panels:
        refuse(f"{runs[0]}: nothing to draw; no run there has the numbers yet")
    with _writing(out):
        pictures.plot(groups, panels, out)
    typer.echo(f"drawn: {out}")


@app.command()
def report(
    runs: Runs,
    out: Annotated[Path, typer.Option("--out", "-o", help="The page.")] = Path("report.html"),
    filters: Filters = None,
    baseline: Baseline = None,
    target: Target = None,
    title: Annotated[str | None, typer.Option(help="Instead of the sweep's name.")] = None,
    question: Annotated[str | None, typer.Option(help="Instead of what the study's file asks.")] = None,
) -> None:
    """Write one page with tables, curves, configuration, code, failures and logs, which needs no network."""
    from imgnet.results.files import Problems
    from imgnet.results.groups import group_runs
    from imgnet.results.measures import results_of
    from imgnet.results.report.page import page_of, render
    from imgnet.rundir import write_atomically

    problems = Problems()
    with _one_line():
        found = _read(runs, filters, problems)
        measured = results_of(group_runs(found), target, _choices(baseline))
    page = page_of(found, measured, problems, title=title, question=question)
    with _writing(out):
        write_atomically(out, render(page))
    _say(problems)
    typer.echo(f"written: {out}")


@app.command()
def diff(
    first: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    second: Annotated[Path, typer.Argument(metavar="RUN", help="Another.")],
    tolerance: Annotated[
        float,
        typer.Option(help="Relative: numbers that are nearer are the same. 0: to the last bit.", min=0, max=1),
    ] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="For a program.")] = False,
) -> None:
    """Print how two runs differ: configuration, code, machine, and the first step and epoch where their numbers part.

    Exit status 0 where the numbers are the same, 1 where they part, 2 where they cannot be compared.
    """
    from imgnet.results.differences import differences, show, to_json
    from imgnet.results.files import Problems

    problems = Problems()
    found = differences(_run_at(first, problems), _run_at(second, problems), problems, tolerance)
    _say(problems)
    if as_json:
        typer.echo(to_json(found), nl=False)
    else:
        show(found)
    if not found.numbers_are_equal:
        sys.exit(1 if any(one.at is not None for one in found.partings) else 2)


@app.command()
def profile(
    path: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    as_json: Annotated[bool, typer.Option("--json", help="For a program.")] = False,
) -> None:
    """Print what the steps that ``profile.steps=N`` recorded spent their time on, a row for each worker."""
    from imgnet.results.files import Problems
    from imgnet.results.formats import print_sheets
    from imgnet.results.profile import NoProfileError, profile_of, profile_sheet, to_json

    problems = Problems()
    run = _run_at(path, problems)
    try:
        found = profile_of(run, problems)
    except NoProfileError as error:
        _say(problems)
        refuse(str(error))
    _say(problems)
    if as_json:
        typer.echo(to_json(found), nl=False)
    else:
        print_sheets([profile_sheet(found)])


def _run_at(path: Path, problems: "Problems") -> "Run":
    """The run in this directory; the process ends where there is none."""
    from imgnet.results.read import read_run

    run = read_run(path, problems) if (path / "run.json").is_file() else None
    if run is None:
        _say(problems)
        refuse(f"{path}: no run directory (there is no run.json that can be read)")
    return run
