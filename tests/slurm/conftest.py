"""A real Slurm for the tests of this folder, and a user's folder and checkout for each of them."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from imgnet.launch.follow.observe import FILE_ENDS
from tests.commands import IMGNET, ROOT, environment
from tests.slurm.private import PrivateSlurm, missing_programs

REQUIRED = "IMGNET_REQUIRE_SLURM"
"""Set where these tests may not be skipped."""
QUICK = ("+experiments=quickstart", "epochs=3")
"""A run of some seconds: handwritten digits on the CPU, whatever GPUs the job holds."""
LIMIT_S = 300
"""For what takes seconds on an idle machine: a worker imports torch for itself, and there are many for two cores."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("slurm") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(3 * LIMIT_S))


@pytest.fixture(scope="session")
def slurm() -> Iterator[PrivateSlurm]:
    lacking = missing_programs()
    if lacking and os.environ.get(REQUIRED, "0") not in ("", "0"):
        pytest.fail(f"{REQUIRED} is set, but there is no {', '.join(lacking)}: apt-get install slurm-wlm munge")
    if lacking:
        pytest.skip(f"no {', '.join(lacking)} here: apt-get install slurm-wlm munge")
    with PrivateSlurm() as private:
        yield private


class User:
    """Somebody with a checkout, who types commands in a folder that holds the data."""

    def __init__(self, slurm: PrivateSlurm, folder: Path, code: Path) -> None:
        self.slurm, self.folder, self.code = slurm, folder, code
        self.started: list[subprocess.Popen[str]] = []

    def run_py(self, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(self.code / "run.py"), *arguments], timeout=LIMIT_S, check=False, **self._how(changes)
        )

    def start_run_py(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(self.code / "run.py"), *arguments]
        self.started.append(subprocess.Popen(command, **self._how({})))
        return self.started[-1]

    def imgnet(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", IMGNET, *arguments], timeout=LIMIT_S, check=False, **self._how({"COLUMNS": "200"})
        )

    def start_imgnet(self, *arguments: str) -> subprocess.Popen[str]:
        self.started.append(subprocess.Popen([sys.executable, "-c", IMGNET, *arguments], **self._how({})))
        return self.started[-1]

    def how(self) -> dict[str, Any]:
        """Where a command of theirs runs, for ``subprocess``."""
        return {"cwd": self.folder, "env": self._how({})["env"]}

    def _how(self, changes: dict[str, str]) -> dict[str, Any]:
        env = environment(
            **{"SLURM_CONF": self.slurm.environment["SLURM_CONF"], "PYTHONPATH": str(self.code)} | changes
        )
        return {"cwd": self.folder, "env": env, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}

    def runs(self) -> list[Path]:
        """Run directories, the oldest first."""
        found = [file.parent for file in self.folder.glob("multirun_outputs/*/*/*/run.json")]
        return sorted(found, key=lambda run: (run.parent.stat().st_mtime_ns, len(run.name), run.name))

    def edit(self, file: str, old: str, new: str) -> None:
        path = self.code / file
        assert path.read_text().count(old) == 1
        path.write_text(path.read_text().replace(old, new))


@pytest.fixture
def user(slurm: PrivateSlurm, tmp_path: Path, digits_root: Path) -> Iterator[User]:
    """A user who runs the code under test."""
    yield from _user(slurm, tmp_path, digits_root, ROOT)


@pytest.fixture
def developer(slurm: PrivateSlurm, tmp_path: Path, digits_root: Path) -> Iterator[User]:
    """A user with a checkout of their own, to be edited."""
    code = tmp_path / "check out's"  # neither Slurm nor a shell may stumble over it
    for name in ("imgnet", "hydra_plugins", "conf", "experiments", "run.py"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        code.mkdir(exist_ok=True)
        copy(ROOT / name, code / name, **({"symlinks": True} if (ROOT / name).is_dir() else {}))
    subprocess.run(["git", "init", "-q"], cwd=code, check=True)
    subprocess.run(["git", "add", "."], cwd=code, check=True)
    yield from _user(slurm, tmp_path, digits_root, code)


def _user(slurm: PrivateSlurm, tmp_path: Path, digits_root: Path, code: Path) -> Iterator[User]:
    folder = tmp_path / "my runs, 100%"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "digits").symlink_to(digits_root)
    user = User(slurm, folder, code)
    yield user
    slurm.ask("scancel", "--me")
    for process in user.started:
        process.kill()
        process.communicate()


def run_json(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "run.json").read_text())


def job_id(run_dir: Path) -> str:
    return json.loads((run_dir / "submission.json").read_text())["slurm_job_id"]


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = LIMIT_S) -> float:
    """Wait for it; the seconds it took."""
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > timeout_s:
            raise TimeoutError(f"not within {timeout_s} s: {what}")
        time.sleep(0.2)
    return time.monotonic() - start


def wait_for_end(*run_dirs: Path, timeout_s: float = LIMIT_S) -> None:
    def ended() -> bool:
        # That they have saved is the workers' word; their job has the last one.
        return all(run_json(run_dir)["status"] in {*FILE_ENDS} - {"preempted"} for run_dir in run_dirs)

    try:
        wait_until(ended, "the runs end", timeout_s)
    except TimeoutError as error:
        logs = [run_dir / "logs" / "slurm.log" for run_dir in run_dirs]
        raise TimeoutError("\n".join([str(error), *(log.read_text() for log in logs if log.is_file())])) from None
