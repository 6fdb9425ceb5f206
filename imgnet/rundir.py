"""The run directory: what a run leaves behind, and how it is written so that no reader ever finds half a file.

======================  =====================================================================================
``.hydra/``             the composed configuration and the overrides
``run.json``            command, commit, versions, hosts, workers, seed, start and end, ``status``, ``error``
``code.diff``           how the checkout differed from that commit, where it did; not what git does not know
``submission.json``     a Slurm run's job and cluster, when it was submitted and with which code, who cancelled it;
                        written by the commands that did
``claims/``             who worked here, and who does (:mod:`imgnet.launch.owner`)
``metrics.csv``         one row for each epoch
``steps.jsonl``         one row for each logged step of rank 0
``workers/``            ``steps_<k>.jsonl`` of the other workers; ``system_<k>.jsonl``: each one's use of its machine
``profile/``            of each worker a trace of some steps, where ``profile.steps`` asked for it, and what they took
``prediction.json``     of a simulated run, what its steps would take on ``cluster.like``
``wandb/``              of Weights & Biases, a folder for each process; ``tensorboard/`` likewise
``summary.json``        final and best metrics, training time, ``status``
``checkpoints/``        exported models
``logs/rank_<k>.log``   one for each worker; ``rank_<k>.exit.json`` is its last word; ``slurm.log`` is the job's output
======================  =====================================================================================
"""

import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from imgnet.runtime import running_under_slurm

STATUSES = ("queued", "running", "completed", "failed", "preempted", "cancelled")
SUBMISSION = "submission.json"
PROFILE = "profile"
PREDICTION = "prediction.json"
MOST_OF_DIFF = 2**20
"""Bytes of ``code.diff``; whoever changes more has committed data by mistake."""
BESIDE = r"\..+?(\.\d+){1,2}"
"""Names of files that are being written: the file's, the process, and the thread where several may write."""
WRITING_S = 60
"""No such file is written for longer, unless its process is gone."""
VERSIONS_OF = ("imgnet", "torch", "torchvision", "timm", "decent-dp", "hydra-core", "numpy")


@dataclass(frozen=True)
class ExitRecord:
    """The last word of a worker: it ``completed``, ``raised``, or was ``terminated`` by a signal that it could hear.

    Of one that was ``killed`` its launcher writes it.
    """

    rank: int
    how: str
    time: float
    """Seconds since 1970."""
    error: str
    """One line; empty where it completed."""
    traceback: str = ""


def write_atomically(path: Path, content: str | bytes, *, durable: bool = False) -> None:
    """Replace ``path`` by ``content``; a crash leaves the old file or the new one.

    Args:
        path: the file.
        content: all of it.
        durable: also where the machine loses its power.

    Raises:
        OSError: with ``path`` in it; the old file is what it was, and nothing is left beside.
    """
    # A worker's thread for signals may write at the same moment as its main thread.
    beside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_native_id()}")
    try:
        with beside.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None


def remove_leftovers(run_dir: Path) -> None:
    """Remove what killed processes left of files and checkpoints that they had not written to the end."""
    for pattern in (".*", "*/.*"):
        for path in run_dir.glob(pattern):
            if re.fullmatch(BESIDE, path.name) and path.is_file() and time.time() - path.stat().st_mtime > WRITING_S:
                path.unlink(missing_ok=True)
    for path in (run_dir / "checkpoints").glob(".*.partial"):
        shutil.rmtree(path, ignore_errors=True)


def not_written(error: OSError, where: Path) -> str:
    """Which file could not be written and why, in one line; ``where`` stands for it if the system does not tell."""
    path = error.filename2 or error.filename or where
    return f"{path}: {error.strerror} (errno {error.errno})"


def create(
    run_dir: Path,
    config: str,
    *,
    hydra: str | None = None,
    overrides: Sequence[str],
    seed: int,
    epochs: int,
    world_size: int,
    identity: str,
    status: str = "running",
) -> None:
    """Make a run directory with its configuration and a ``run.json``; of one that is made again the attempts stay.

    For one process.

    Args:
        run_dir: the directory.
        config: the run's configuration, as YAML.
        hydra: Hydra's own part, as YAML, where it is known.
        overrides: what the user typed.
        seed: of the run.
        epochs: that it is to train.
        world_size: number of workers.
        identity: the same for runs that would give the same result (:mod:`imgnet.launch.repeats`).
        status: ``running``, or ``queued`` where it starts later.
    """
    for folder in (run_dir / ".hydra", run_dir / "checkpoints", run_dir / "logs"):
        folder.mkdir(parents=True, exist_ok=True)
    (run_dir / ".hydra" / "config.yaml").write_text(config, encoding="utf-8")
    (run_dir / ".hydra" / "overrides.yaml").write_text(OmegaConf.to_yaml(list(overrides)), encoding="utf-8")
    if hydra is not None:
        (run_dir / ".hydra" / "hydra.yaml").write_text(hydra, encoding="utf-8")
    _write_diff(run_dir)
    write_run(
        run_dir,
        command=_command(),
        overrides=list(overrides),
        commit=_commit(),
        dirty=bool(_git("status", "--porcelain")),
        versions={name: version for name in VERSIONS_OF if (version := _version(name))},
        python=platform.python_version(),
        hosts=[socket.gethostname()],
        slurm_job_id=running_under_slurm(),
        world_size=world_size,
        seed=seed,
        epochs=epochs,
        identity=identity,
        earlier=_attempts(run_dir),
        start=now() if status == "running" else None,
        end=None,
        status=status,
        error=None,
    )


def reopen(run_dir: Path) -> None:
    """Say in the directory of an unfinished run that it goes on. For one process, which alone works in it."""
    remove_leftovers(run_dir)
    for record in (run_dir / "logs").glob("rank_*.exit.json"):
        record.unlink()
    _write_diff(run_dir)
    write_run(
        run_dir,
        earlier=_attempts(run_dir),
        commit=_commit(),
        dirty=bool(_git("status", "--porcelain")),
        hosts=[socket.gethostname()],
        start=now(),
        end=None,
        status="running",
        error=None,
    )


def find(path: Path) -> list[Path]:
    """All run directories that are ``path`` or lie up to three folders below, in the order of their sweeps."""
    depths = ("run.json", "*/run.json", "*/*/run.json", "*/*/*/run.json")
    found = [file.parent for pattern in depths for file in path.glob(pattern)]
    return sorted(found, key=lambda run: (run.parent, len(run.name), run.name))


def _attempts(run_dir: Path) -> list[dict[str, Any]]:
    """What ``run.json`` says of those that worked on the run before, the one that it describes included."""
    run = read_json(run_dir / "run.json")
    last = {key: run.get(key) for key in ("start", "end", "status", "error", "commit", "dirty", "hosts")}
    return [*run.get("earlier", []), *([last] if run.get("start") else [])]


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _command() -> list[str]:
    """What was typed; ``sys.argv`` is what Hydra was shown of it (:mod:`imgnet.launch.commandline`)."""
    script, words = sys.argv[0], sys.orig_argv
    typed = words[words.index(script) + 1 :] if script in words else sys.argv[1:]
    return [Path(script).name, *typed]


def _write_diff(run_dir: Path) -> None:
    """Keep how the tracked files differ from their commit; what an earlier part of the run was made with stays too."""
    patch = _git("diff", "--no-ext-diff", "--no-textconv", "--no-color", "HEAD")
    path = run_dir / "code.diff"
    if path.is_file() and patch is not None and patch[:MOST_OF_DIFF] != path.read_bytes():
        path.rename(run_dir / f"code.{len(list(run_dir.glob('code.*diff')))}.diff")
    if patch:
        write_atomically(path, patch[:MOST_OF_DIFF])


def _commit() -> str | None:
    name = _git("rev-parse", "HEAD")
    return None if name is None else name.decode().strip()


@cache  # asked once for each run of a sweep
def _git(*arguments: str) -> bytes | None:
    """What git says, to the byte: a diff that is to be applied holds lines of files in any encoding."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


@cache
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def read_json(path: Path) -> dict[str, Any]:
    """The object in ``path``; empty where there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write_run(run_dir: Path, **changes: Any) -> None:
    """Change some entries of ``run.json``."""
    path = run_dir / "run.json"
    write_atomically(path, json.dumps(read_json(path) | changes, indent=2) + "\n")


def write_summary(run_dir: Path, summary: Mapping[str, Any]) -> None:
    """Change some entries of ``summary.json``."""
    path = run_dir / "summary.json"
    write_atomically(path, json.dumps(read_json(path) | dict(summary), indent=2) + "\n")


def finish(run_dir: Path, status: str, error: str | None = None) -> None:
    """Say in ``run.json`` and ``summary.json`` how the run ended; the last word counts."""
    assert status in STATUSES, status
    write_run(run_dir, status=status, error=error, end=now())
    write_summary(run_dir, {"status": status})


def write_exit_record(run_dir: Path, record: ExitRecord) -> None:
    """Leave a worker's last word where the launcher, and whoever looks later, finds it.

    Being terminated, or killed, is no news of a worker that has said why it ends.
    """
    path = run_dir / "logs" / f"rank_{record.rank}.exit.json"
    if record.how not in ("terminated", "killed") or not path.exists():
        write_atomically(path, json.dumps(asdict(record), indent=2) + "\n")


def read_exit_records(run_dir: Path) -> dict[int, ExitRecord]:
    """The last words of the workers, by rank."""
    records = [ExitRecord(**read_json(path)) for path in (run_dir / "logs").glob("rank_*.exit.json")]
    return {record.rank: record for record in sorted(records, key=lambda record: record.rank)}
