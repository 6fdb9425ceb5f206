"""What stands on the page, and the page.

Everything that comes from a run directory is text to the template, which escapes it; a policy on the page itself lets
nothing in from elsewhere, and no script or style but the two that are part of this package, by their hashes.
"""

import shlex
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import imgnet
from imgnet.results.files import Problems, as_text, printable, read_text
from imgnet.results.formats import sheets
from imgnet.results.groups import Group, group_runs
from imgnet.results.measures import MEASURES, Results, results_of
from imgnet.results.names import display_path
from imgnet.results.pictures.panels import BAND, legend_label
from imgnet.results.pictures.plot import drawing, overview
from imgnet.results.read import Run, log_end, traceback_of
from imgnet.results.report.inline import swatch_svg, to_svg
from imgnet.results.report.question import questions_of
from imgnet.results.sheet import Cell, Column, Sheet, label_columns, results_sheet

HERE = Path(__file__).parent
POINTS_OF_A_CURVE = 128
BYTES_OF_LOGS = 2_500_000
"""Of all runs together; each has its share, within these."""
LEAST_OF_A_LOG, MOST_OF_A_LOG = 1_000, 8_000
MOST_OF_DIFFS = 500_000
"""Characters of all diffs together."""
NOT_KNOWN = "not known"


@dataclass(frozen=True)
class Entry:
    """A line of the legend."""

    swatch: Markup
    label: str


@dataclass(frozen=True)
class Picture:
    """A figure of the page."""

    title: str
    svg: Markup


@dataclass(frozen=True)
class Failure:
    """A run that failed, and why."""

    id: str
    name: str
    error: str
    traceback: str


@dataclass(frozen=True)
class Diff:
    """How code differed from its commit."""

    title: str
    text: str


@dataclass(frozen=True)
class Detail:
    """A run by itself."""

    id: str
    name: str
    status: str
    path: str
    command: str
    log: str


@dataclass(frozen=True)
class Page:
    """All that the template shows. Only ``svg`` and ``swatch`` are markup."""

    title: str
    questions: list[str]
    facts: list[str]
    problems: list[str]
    results: list[Sheet]
    legend_title: str
    legend: list[Entry]
    figures: list[Picture]
    failures: list[Failure]
    runs: Sheet
    anchors: list[str]
    """Of the rows of ``runs``."""
    varied: Sheet
    common: list[tuple[str, str]]
    environment: Sheet
    diffs: list[Diff]
    details: list[Detail]
    compared: list[dict[str, Any]]
    """For the script: each run's name, and its values of what is not the same in all runs."""
    band: str = BAND.replace("\n", " ")
    version: str = imgnet.__version__

    @property
    def sections(self) -> Iterator[tuple[str, str]]:
        """Where one can go from the top."""
        yield "results", "Results"
        if self.figures:
            yield "curves", "Curves"
        if self.failures:
            yield "failures", "Failures"
        yield from (("runs", "Runs"), ("configuration", "Configuration"), ("environment", "Environment and code"))
        yield "logs", "Each run"


def render(page: Page) -> str:
    """The page as one document that needs nothing else."""
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined)
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    template = environment.get_template("page.html.jinja")
    # The two are files of this package, and markup as they stand.
    return template.render(page=page, policy=policy, style=Markup(style), script=Markup(script))  # noqa: S704


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


def page_of(
    runs: Sequence[Run], results: Results, problems: Problems, *, title: str | None = None, question: str | None = None
) -> Page:
    """Put a page together.

    Args:
        runs: all of them, in the order of their rows.
        results: of their groups.
        problems: what was not read so far; what is not read here comes to it.
        title: instead of the sweep's name.
        question: instead of what the study's file says.
    """
    singles = group_runs(runs, each=True)
    groups = [row.group for row in results.rows]
    figures = _figures(groups, problems)
    failures = [_failure(number, single, problems) for number, single in enumerate(singles)]
    diffs = [*_diffs(runs, problems)]
    varying = _varying(runs)
    return Page(
        title=title or _title(runs),
        questions=[question] if question else questions_of(runs),
        facts=[*_facts(runs)],
        problems=problems.lines(),
        results=sheets(results),
        legend_title=", ".join(groups[0].labels) or "runs",
        legend=[_entry(index, group) for index, group in enumerate(groups)],
        figures=figures,
        failures=[failure for failure in failures if failure],
        runs=_runs_sheet(singles, results.target),
        anchors=[_anchor(number) for number in range(len(singles))],
        varied=_varied(groups),
        common=_common(runs),
        environment=_environment(runs),
        diffs=diffs,
        details=[_detail(number, single, len(singles)) for number, single in enumerate(singles)],
        compared=[_compared(single, varying) for single in singles],
    )


def _title(runs: Sequence[Run]) -> str:
    """The sweeps' folders with their days, ``2026-03-01/10-00-00_study``."""
    folders = list(dict.fromkeys(run.path.parent for run in runs))
    names = [printable("/".join(folder.parts[-2:])) for folder in folders]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _facts(runs: Sequence[Run]) -> Iterator[str]:
    counted = Counter(run.status for run in runs)
    yield f"{len(runs)} run{'s' * (len(runs) > 1)}: " + ", ".join(f"{count} {word}" for word, count in counted.items())
    begun = sorted(as_text(run.about["start"]) for run in runs if run.about.get("start"))
    ended = sorted(as_text(run.about["end"]) for run in runs if run.about.get("end"))
    if begun:
        yield f"from {_minute(begun[0])}" + (f" to {_minute(ended[-1])}" if ended else "") + " UTC"
    for what, values in (("workers", _values(runs, "workers")), ("commit", _values(runs, "commit"))):
        known = [value[:10] for value in values if value != NOT_KNOWN]
        yield f"{what} {', '.join(known[:4])}{' and more' * (len(known) > 4)}"


def _minute(time: str) -> str:
    """``2026-03-01 10:00`` of a time in UTC, as run directories have it."""
    return time[:16].replace("T", " ")


def _values(runs: Sequence[Run], key: str) -> list[str]:
    return list(dict.fromkeys(_recorded(run).get(key, NOT_KNOWN) for run in runs))


def _recorded(run: Run) -> dict[str, str]:
    """Where and with what a run was made."""
    about, versions = run.about, run.about.get("versions")
    recorded = {key: as_text(about[key]) for key in ("commit", "python") if about.get(key) is not None}
    recorded["uncommitted changes"] = "yes" if about.get("dirty") else "no"
    if isinstance(versions, Mapping):
        recorded |= {printable(str(name)): as_text(version) for name, version in versions.items()}
    if isinstance(hosts := about.get("hosts"), list):
        recorded["hosts"] = as_text(", ".join(map(str, hosts)))
    recorded["workers"] = run.settings.get("workers", NOT_KNOWN)
    return recorded


def _figures(groups: Sequence[Group], problems: Problems) -> list[Picture]:
    with drawing(**{"svg.fonttype": "none"}):
        panels = overview(groups, problems, POINTS_OF_A_CURVE)
        # Matplotlib escapes the text that it draws.
        return [Picture(panel.title, Markup(to_svg(panel, f"p{n}"))) for n, panel in enumerate(panels)]  # noqa: S704


def _entry(index: int, group: Group) -> Entry:
    swatch = swatch_svg(index, is_finished=bool(group.completed))
    return Entry(Markup(swatch), legend_label(group))  # noqa: S704  (colours and coordinates alone)


def _runs_sheet(singles: Sequence[Group], target: float | None) -> Sheet:
    sheet = results_sheet(results_of(singles, target))
    return replace(sheet, columns=[column for column in sheet.columns if column.key != "sd_images"], notes=[])


def _anchor(number: int) -> str:
    return f"run-{number}"


def _failure(number: int, single: Group, problems: Problems) -> Failure | None:
    run = single.runs[0]
    if run.status != "failed":
        return None
    text = traceback_of(run, problems)[-MOST_OF_A_LOG:]
    return Failure(_anchor(number), single.name, run.error or "no error was written", text)


def _detail(number: int, single: Group, num_runs: int) -> Detail:
    run = single.runs[0]
    size = min(MOST_OF_A_LOG, max(LEAST_OF_A_LOG, BYTES_OF_LOGS // num_runs))
    command = run.about.get("command")
    typed = shlex.join(map(str, command)) if isinstance(command, list) else ""
    path = printable(display_path(run.path))
    return Detail(_anchor(number), single.name, run.status, path, printable(typed), log_end(run, size))


def _varied(groups: Sequence[Group]) -> Sheet:
    """The settings that are not the same in all groups; what tells groups apart comes first."""
    columns = label_columns(groups)
    known = {name for column in columns for name in (column.key, f"{column.key}.name")}
    for key in dict.fromkeys(key for group in groups for key in group.runs[0].settings):
        values = [group.runs[0].settings.get(key, "-") for group in groups]
        if len(set(values)) > 1 and key not in (*known, "seed"):
            columns.append(Column(key, key, [Cell(value, value) for value in values], tells=True))
    return Sheet("", columns if len(groups) > 1 else [])


def _common(runs: Sequence[Run]) -> list[tuple[str, str]]:
    first = runs[0].settings
    return [(key, value) for key, value in first.items() if all(run.settings.get(key) == value for run in runs)]


def _environment(runs: Sequence[Run]) -> Sheet:
    """What the runs were made with, and how many with each."""
    recorded = [_recorded(run) for run in runs]
    counted = Counter((key, value) for one in recorded for key, value in one.items())
    keys = {key: None for one in recorded for key in one}
    rows = [(key, value, count) for wanted in keys for (key, value), count in counted.items() if key == wanted]
    return Sheet(
        "",
        [
            Column("what", "", [Cell(key, key) for key, _, _ in rows], tells=True),
            Column("value", "value", [Cell(value, value) for _, value, _ in rows], tells=True),
            Column("runs", "runs", [Cell(str(count), count) for _, _, count in rows]),
        ],
    )


def _diffs(runs: Sequence[Run], problems: Problems) -> Iterator[Diff]:
    """Each distinct ``code.diff`` once."""
    by_text: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        if (path := run.path / "code.diff").is_file():
            text = printable(read_text(path, problems), keep="\n\t")
            by_text.setdefault((as_text(run.about.get("commit")), text), []).append(run)
    left = MOST_OF_DIFFS
    for (commit, text), alike in by_text.items():
        shown = (
            text if len(text) <= left else f"{text[:left]}\n... the rest is in {display_path(alike[0].path)}/code.diff"
        )
        left = max(0, left - len(text))
        yield Diff(f"Changes to {commit[:10]} that were not committed, {len(alike)} runs", shown)


def _compared(single: Group, keys: Sequence[str]) -> dict[str, Any]:
    values = _described(single.runs[0])
    return {"name": single.name, "values": {key: values[key] for key in keys if key in values}}


def _varying(runs: Sequence[Run]) -> list[str]:
    described = [_described(run) for run in runs]
    keys = {key: None for one in described for key in one}
    return [key for key in keys if len({one.get(key) for one in described}) > 1]


def _described(run: Run) -> dict[str, str]:
    """All that can differ between two runs, as text."""
    numbers = {f"{measure.title}{' s' * measure.is_time}": f"{measure.of(run):.6g}" for measure in MEASURES}
    known = {title: number for title, number in numbers.items() if number != "nan"}
    return {**run.settings, **_recorded(run), "status": run.status, "error": run.error, **known}
