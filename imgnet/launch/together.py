"""What the runs of one command have in common: ``fail_fast``, and the command after the last of them."""

import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from imgnet.config import ConfigError, RunConfig, SlurmConfig
from imgnet.runtime import path_of_commands

KEYS = ("fail_fast", "on_sweep_end")
SWEEP = "{sweep}"
"""Stands for the sweep's folder in ``on_sweep_end``."""


def problems(config: RunConfig) -> Iterator[str]:
    """What stands against the command after the last run, before there is a sweep."""
    if config.on_sweep_end is None:
        return
    try:
        words = shlex.split(config.on_sweep_end)
    except ValueError as error:
        yield f"on_sweep_end={config.on_sweep_end!r}: {error}"
        return
    if not words or shutil.which(words[0], path=path_of_commands()) is None:
        yield f"on_sweep_end={config.on_sweep_end!r}: there is no command {words[0] if words else ''!r} on the path"


def refuse_what_differs(configs: Sequence[RunConfig], *, searches: bool) -> None:
    """Refuse a sweep whose runs do not agree on what happens to all of them.

    Args:
        configs: of the runs.
        searches: whether further runs may follow from the results of these.

    Raises:
        ConfigError: a line for each key.
    """
    chosen = {key: list(dict.fromkeys(getattr(config, key) for config in configs)) for key in KEYS}
    found = [
        f"{key}={','.join(map(str, values))}: must be the same for all runs of a command"
        for key, values in chosen.items()
        if len(values) > 1
    ]
    used = [key for key, values in chosen.items() if values[0]] if configs else []
    if searches and "on_sweep_end" in used:
        found.append("on_sweep_end: a sweeper that searches does not say which run is the last; type the command then")
    if len({isinstance(config.cluster, SlurmConfig) for config in configs}) > 1:
        found += [f"{key}: some runs are for Slurm and some are not; sweep over them in two commands" for key in used]
    if found:
        raise ConfigError(found)


def refuse_alone(configs: Iterable[RunConfig], where: str) -> None:
    """Refuse both keys where somebody else carries out the runs, one by one.

    Raises:
        ConfigError: one of them is set.
    """
    used = {key for config in configs for key in KEYS if getattr(config, key)}
    if used:
        raise ConfigError([f"{key}: {where} knows of no other run of a sweep; leave it out" for key in sorted(used)])


def words_of(command: str, folder: Path) -> list[str]:
    """The command's words, with the folder in place of :data:`SWEEP`; the folder's name makes no further words."""
    return [word.replace(SWEEP, str(folder)) for word in shlex.split(command)]


def run_here(command: str, folder: Path) -> None:
    """Run it, after the last run.

    Raises:
        SystemExit: with 1, where it fails.
    """
    words = words_of(command, folder)
    sys.stdout.flush()
    program = shutil.which(words[0], path=path_of_commands())
    status = subprocess.run([program or words[0], *words[1:]], check=False).returncode
    if status:
        sys.stderr.write(f"on_sweep_end ended with {status}: {shlex.join(words)}\n")
        sys.exit(1)
