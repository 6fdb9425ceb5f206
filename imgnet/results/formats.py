"""Results for a terminal, a README, a paper, a spreadsheet and a program."""

import csv
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from io import StringIO
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from imgnet.results.groups import Group, name_of_run
from imgnet.results.measures import MEASURES, Comparison, Results, Row, num_val_images, time_to_accuracy
from imgnet.results.read import Run
from imgnet.results.sheet import Column, Sheet, comparison_sheet, results_sheet
from imgnet.results.statistics import LEVEL, Estimate

INTERVAL = f"{100 * LEVEL:g} % Student t interval of the mean"
LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
} | {character: f"\\{character}" for character in "&%$#_{}"}
WIDTH_OF_A_PIPE = 200
LEFT_OUT_FIRST = (
    *("sd_images", "top5", "sd_seeds", "sent", "speed", "distance", "time"),
    *("speed_up_to_target_interval", "speed_up_interval", "speed_up_to_target", "p", "speed_up"),
)
"""Keys of columns that a narrow terminal does not show."""


def sheets(results: Results) -> list[Sheet]:
    """The table of results, and that of comparisons where a baseline was named."""
    compared = comparison_sheet(results)
    return [results_sheet(results), *([compared] if compared else [])]


def print_sheets(shown: Sequence[Sheet], console: Console | None = None) -> None:
    """Tables for a terminal, their notes under them."""
    console = console or Console()
    if not console.is_terminal:  # rich would assume 80 columns and cut words; a log or a pipe has no width
        console = Console(width=WIDTH_OF_A_PIPE, file=console.file)
    for sheet in shown:
        sheet, left_out = _narrowed(sheet, console.width)
        console.print(_rich_table(sheet))
        if left_out:
            note = f"Not shown, for the terminal is narrow: {', '.join(left_out)}."
            console.print(Text(note, style="dim"))
        for note in sheet.notes:
            console.print(Text(note, style="dim"), soft_wrap=not console.is_terminal)


def _narrowed(sheet: Sheet, width: int) -> tuple[Sheet, list[str]]:
    """The columns that a terminal has room for, the least important left out; and the titles of these."""
    columns, left_out = list(sheet.columns), []
    for key in LEFT_OUT_FIRST:
        if sum(_width(column) for column in columns) <= width:
            break
        left_out += [column.title for column in columns if column.key == key]
        columns = [column for column in columns if column.key != key]
    return replace(sheet, columns=columns), left_out


def _width(column: Column) -> int:
    """In characters, with the space beside it."""
    return max(cell_len(text) for text in (column.title, *(cell.text for cell in column.cells))) + 2 + 1


def _rich_table(sheet: Sheet) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=Text(sheet.title) if sheet.title else None, title_justify="left")
    for column in sheet.columns:
        table.add_column(Text(column.title), justify="left" if column.tells else "right", overflow="fold")
    for row in sheet.rows():
        table.add_row(*(Text(cell.text) for cell in row))
    return table


def to_markdown(shown: Sequence[Sheet]) -> str:
    """Pipe tables, their notes as a list."""
    return "\n".join(_markdown(sheet) for sheet in shown)


def _markdown(sheet: Sheet) -> str:
    lines = [f"**{_in_markdown(sheet.title)}**", ""] if sheet.title else []
    lines.append(_markdown_row(column.title for column in sheet.columns))
    lines.append(_markdown_row("---" if column.tells else "---:" for column in sheet.columns))
    lines += [_markdown_row(cell.text for cell in row) for row in sheet.rows()]
    lines += ["", *(f"- {_in_markdown(note)}" for note in sheet.notes)] if sheet.notes else []
    return "\n".join(lines) + "\n"


def _markdown_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell if set(cell) <= {'-', ':'} else _in_markdown(cell) for cell in cells)} |"


def _in_markdown(text: str) -> str:
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", text)


def to_latex(shown: Sequence[Sheet]) -> str:
    """``tabular``s for the package booktabs, their notes as comments."""
    return "\n".join(_latex(sheet) for sheet in shown)


def _latex(sheet: Sheet) -> str:
    alignment = "".join("l" if column.tells else "r" for column in sheet.columns)
    lines = [f"% {sheet.title}"] if sheet.title else []
    lines += [rf"\begin{{tabular}}{{{alignment}}}", r"\toprule"]
    lines += [_latex_row([column.title for column in sheet.columns]), r"\midrule"]
    lines += [_latex_row([cell.text for cell in row]) for row in sheet.rows()]
    lines += [r"\bottomrule", r"\end{tabular}", *(f"% {note}" for note in sheet.notes)]
    return "\n".join(lines) + "\n"


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join("".join(LATEX.get(character, character) for character in cell) for cell in cells) + r" \\"


def to_csv(results: Results) -> str:
    """A line for each group, numbers in full: seconds, percent, ratios; empty where there is none."""
    compared = {comparison.group: comparison for comparison in results.comparisons}
    rows = [_flat_row(row, compared.get(row.group), results) for row in results.rows]
    text = StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _flat_row(row: Row, comparison: Comparison | None, results: Results) -> dict[str, Any]:
    flat: dict[str, Any] = dict(row.group.labels) | {
        "seeds": len(row.group.completed),
        "missing": len(row.group.missing),
    }
    for key, found in row.estimates.items():
        flat |= _flat_estimate(key, found)
    flat["top1_sd_images"] = _or_none(row.image_deviation)
    if results.target is not None:
        flat["target_not_reached"] = len(row.not_reached)
    if results.baseline:
        flat |= _flat_comparison(comparison)
    return flat


def _flat_estimate(key: str, found: Estimate | None) -> dict[str, float | int | None]:
    names = ("mean", "low", "high", "sd", "n")
    values = (found.mean, found.low, found.high, found.deviation, found.num_values) if found else (math.nan,) * 5
    return {f"{key}_{name}": _or_none(value) for name, value in zip(names, values, strict=True)}


def _flat_comparison(comparison: Comparison | None) -> dict[str, Any]:
    accuracy = comparison.accuracy.estimate if comparison and comparison.accuracy else None
    flat = _flat_estimate("difference", accuracy) | {"p_holm": _or_none(comparison.p) if comparison else None}
    flat |= _flat_estimate("speed_up", comparison.speed_up if comparison else None)
    return flat | _flat_estimate("speed_up_to_target", comparison.speed_up_to_target if comparison else None)


def to_json(results: Results) -> str:
    """Everything, each run's numbers included; null where there is none."""
    described = {
        "interval": INTERVAL,
        "target": results.target,
        "baseline": [str(choice) for choice in results.baseline],
        "groups": [_described_row(row, results.target) for row in results.rows],
        "comparisons": [_described_comparison(comparison) for comparison in results.comparisons],
        "notes": [note for sheet in sheets(results) for note in sheet.notes],
    }
    return json.dumps(described, indent=2, allow_nan=False) + "\n"


def _described_row(row: Row, target: float | None) -> dict[str, Any]:
    return {
        "name": row.group.name,
        "settings": row.group.labels,
        "estimates": {key: _described(found) for key, found in row.estimates.items()},
        "top1_sd_images": _or_none(row.image_deviation),
        "runs": [_described_run(row.group, run, target) for run in row.group.runs],
        "repeats": [str(run.path) for run in row.group.repeats],
    }


def _described_run(group: Group, run: Run, target: float | None) -> dict[str, Any]:
    numbers = {measure.key: _or_none(measure.of(run)) for measure in MEASURES}
    if target is not None:
        numbers["target"] = _or_none(time_to_accuracy(run, target))
    return {
        "name": name_of_run(group, run),
        "path": str(run.path),
        "seed": run.seed,
        "status": run.status,
        "counted": run.is_completed,
        "error": run.error or None,
        "num_val_images": _or_none(num_val_images(run)),
        **numbers,
    }


def _described_comparison(comparison: Comparison) -> dict[str, Any]:
    accuracy = comparison.accuracy
    return {
        "name": comparison.group.name,
        "baseline": comparison.baseline.name,
        "seeds": comparison.seeds,
        "difference": _described(accuracy.estimate if accuracy else None),
        "p_holm": _or_none(comparison.p),
        "speed_up": _described(comparison.speed_up),
        "speed_up_to_target": _described(comparison.speed_up_to_target),
    }


def _described(found: Estimate | None) -> dict[str, float | int | None] | None:
    if found is None:
        return None
    names = {"mean": found.mean, "low": found.low, "high": found.high, "sd": found.deviation, "n": found.num_values}
    return {name: _or_none(value) for name, value in names.items()}


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
