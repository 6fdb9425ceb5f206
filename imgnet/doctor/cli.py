"""``imgnet doctor``."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imgnet.refuse import refuse

if TYPE_CHECKING:
    from imgnet.config import RunConfig
    from imgnet.doctor.verdict import Verdict

app = typer.Typer()

_STYLES = {"ok": "green", "warning": "yellow", "error": "bold red"}


@app.command()
def doctor(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="As for run.py: data=digits, data.root=FOLDER, cluster=mine."),
    ] = None,
    runs: Annotated[Path, typer.Option(help="Where run directories are written.")] = Path("multirun_outputs"),
    as_json: Annotated[bool, typer.Option("--json", help="For a program.")] = False,
) -> None:
    """Look whether this machine can do what a run asks of it, and say what to do where it cannot.

    Exit status 0: nothing stands in the way; 1: some run would fail, see `error`; 2: a wrong command.
    """
    verdicts = []
    for verdict in _verdicts(_composed(overrides or []), runs):
        verdicts.append(verdict)
        if not as_json:
            _show(verdict)
    if as_json:
        typer.echo(json.dumps([_described(verdict) for verdict in verdicts], indent=2))
    sys.exit(1 if any(verdict.level.value == "error" for verdict in verdicts) else 0)


def _composed(overrides: list[str]) -> "RunConfig":
    from imgnet.config import ConfigError
    from imgnet.plan.compose import composed_runs

    try:
        (config, *others) = composed_runs(overrides)
    except ConfigError as error:
        refuse(str(error))
    if others:
        refuse(f"{' '.join(overrides)}: {1 + len(others)} runs; the doctor looks at one at a time")
    return config


def _verdicts(config: "RunConfig", runs: Path) -> Iterator["Verdict"]:
    from imgnet.config import LocalConfig, SlurmConfig
    from imgnet.doctor.averaging import averaging
    from imgnet.doctor.machine import machine
    from imgnet.doctor.services import data, wandb_login
    from imgnet.runtime import visible_gpus

    cluster = config.cluster
    on_slurm = isinstance(cluster, SlurmConfig)
    num_workers = cluster.cpu_workers_per_node if isinstance(cluster, LocalConfig) else 1
    yield from machine(visible_gpus() or num_workers, runs, with_slurm=on_slurm)
    yield data(config.data)
    yield wandb_login()
    yield averaging()


def _described(verdict: "Verdict") -> dict[str, Any]:
    return {
        "subject": verdict.subject,
        "verdict": verdict.level.value,
        "found": verdict.found,
        "remedy": verdict.remedy or None,
    }


def _show(verdict: "Verdict") -> None:
    from rich.console import Console
    from rich.text import Text

    line = Text(f"{verdict.level.value:<8}", style=_STYLES[verdict.level.value])
    line.append(f"{verdict.subject:<16}", style="bold").append(verdict.found, style="not bold")
    if verdict.remedy:
        line.append(f"\n{'':<24}-> {verdict.remedy}", style="not bold")
    Console().print(line, soft_wrap=True)
