"""Real commands, as a user types them, in a folder of their own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
IMGNET = 'from imgnet.cli import app; app(prog_name="imgnet")'
"""What the command ``imgnet`` does, for Python's ``-c``."""


def environment(**changes: str) -> dict[str, str]:
    """The environment of a user at a terminal: nothing of a job, no full errors, compiled modules kept."""
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
    return kept | {"PYTHONPATH": str(ROOT)} | changes


def run_py(*arguments: str, cwd: Path, timeout: float = 120, **changes: str) -> subprocess.CompletedProcess[str]:
    """``python run.py <arguments>``, typed in ``cwd``."""
    return subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *arguments],
        cwd=cwd,
        env=environment(**changes),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def start_run_py(*arguments: str, cwd: Path, out_in: Path | None = None) -> subprocess.Popen[str]:
    """The same, left running; what it prints goes to ``out.txt``. A process group of its own, as in a terminal."""
    with ((out_in or cwd) / "out.txt").open("w") as out:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "run.py"), *arguments],
            cwd=cwd,
            env=environment(),
            stdout=out,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
