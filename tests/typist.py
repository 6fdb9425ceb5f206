"""Types commands fast: each is `run.py` in a process of its own, forked from one that has imported what it imports.

For commands that are refused, whose time is else that of starting Python and importing Hydra.
"""

import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path

from tests.commands import ROOT, environment


@dataclass(frozen=True)
class Answer:
    """What a command ended with and said."""

    status: int
    out: str
    err: str


class Typist:
    """The process that has imported what ``run.py`` does. End it with :meth:`close`."""

    def __init__(self, **changes: str) -> None:
        env = environment(**changes)
        command = [sys.executable, "-m", "tests.typist"]
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def type(self, *arguments: str, cwd: Path) -> Answer:
        """``python run.py <arguments>``, typed in ``cwd``."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            said = Path(folder, "out"), Path(folder, "err")
            self._process.stdin.write(json.dumps([arguments, str(cwd), *map(str, said)]) + "\n")
            self._process.stdin.flush()
            status = int(self._process.stdout.readline())
            return Answer(status, *(path.read_text() for path in said))

    def close(self) -> None:
        """End the process."""
        self._process.communicate(timeout=10)


def _serve() -> None:
    runpy.run_path(str(ROOT / "run.py"), run_name="imported")
    for line in sys.stdin:
        arguments, cwd, out, err = json.loads(line)
        child = os.fork()
        if not child:
            os._exit(_run(arguments, cwd, out, err))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _run(arguments: list[str], cwd: str, out: str, err: str) -> int:
    os.chdir(cwd)
    for number, path in enumerate((os.devnull, out, err)):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
    sys.argv = [str(ROOT / "run.py"), *arguments]
    status: int | str | None = 0
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status if isinstance(status, int) else bool(status)


if __name__ == "__main__":
    _serve()
