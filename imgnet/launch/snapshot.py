"""The code as it is now, copied for jobs that start later: whoever edits a file meanwhile changes no queued run."""

import shutil
import subprocess
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
IGNORED = shutil.ignore_patterns("__pycache__")


def take_snapshot(target: Path, package: Path = PACKAGE) -> None:
    """Copy the tracked files of the checkout, as they are on disk, to the new folder ``target``.

    A module that git does not know yet is copied as well where it lies in the package, since the code that is copied
    may import it. Without a git checkout (an installed package) the package alone is copied.
    """
    root, beside = package.parent, target.with_name(f".{target.name}")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    files = _listed(root, "--cached") + _listed(root, "--others", "--exclude-standard", "--", f"{package.name}/*.py")
    if Path(package.name, "__init__.py") in files:
        _copy(root, files, beside)
    else:
        shutil.copytree(package, beside / package.name, ignore=IGNORED)
    beside.rename(target)


def is_running_from(code: Path, package: Path = PACKAGE) -> bool:
    """Whether this process imported a snapshot's package, and not one that is installed or lies in its way."""
    snapshot = code / package.name
    return snapshot.is_dir() and snapshot.samefile(package)


def _listed(root: Path, *arguments: str) -> list[Path]:
    """What ``git ls-files`` names, relative to ``root``; nothing where there is no git or no checkout."""
    command = ["git", "-C", str(root), "ls-files", "-z", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [Path(name) for name in done.stdout.split("\0") if name] if done.returncode == 0 else []


def _copy(root: Path, files: list[Path], target: Path) -> None:
    for name in files:
        source = root / name
        if not (source.is_file() or source.is_symlink()):
            continue  # deleted here and not yet in git, or a submodule
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target / name, follow_symlinks=False)
