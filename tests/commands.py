"""Real commands, as a user types them, in a folder of their own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
IMGNET = 'from imgnet.cli import app; app(prog_name="imgnet")'
"""What the command ``imgnet`` does, for Python's ``-c``."""


NOT_MEASURED = {"COVERAGE_PROCESS_CONFIG": ""}
"""For the environment of a process whose lines need not be counted: that doubles the time of what it imports."""


def environment(*, measured: bool = False, **changes: str) -> dict[str, str]:
    """The environment of a user at a terminal: nothing of a job, no full errors, compiled modules kept.

    Args:
        measured: count lines for coverage, if this process does. A few commands that go the whole way suffice.
        changes: further variables, and other values.
    """
    foreign = (
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "MASTER_ADDR",
        "SLURM_",
        "HYDRA_FULL_ERROR",
        "PYTHONDONTWRITEBYTECODE",
    )
    kept = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
    return kept | {"PYTHONPATH": str(ROOT)} | ({} if measured else NOT_MEASURED) | changes


def run_py(
    *arguments: str, cwd: Path, timeout: float = 120, measured: bool = False, **changes: str
) -> subprocess.CompletedProcess[str]:
    """``python run.py <arguments>``, typed in ``cwd``."""
    env = environment(measured=measured, **changes)
    return _python(str(ROOT / "run.py"), *arguments, cwd=cwd, timeout=timeout, env=env)


def imgnet(*arguments: str, cwd: Path, timeout: float = 120, **changes: str) -> subprocess.CompletedProcess[str]:
    """``imgnet <arguments>``, typed in ``cwd``."""
    return _python("-c", IMGNET, *arguments, cwd=cwd, timeout=timeout, env=environment(**changes))


def _python(*arguments: str, cwd: Path, timeout: float, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def start_run_py(
    *arguments: str, cwd: Path, out_in: Path | None = None, measured: bool = False
) -> subprocess.Popen[str]:
    """The same, left running; what it prints goes to ``out.txt``. A process group of its own, as in a terminal."""
    with ((out_in or cwd) / "out.txt").open("w") as out:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "run.py"), *arguments],
            cwd=cwd,
            env=environment(measured=measured),
            stdout=out,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
