"""The code as it is now, copied for jobs that start later: whoever edits a file meanwhile changes no queued run."""

import hashlib
import shutil
import subprocess
from collections.abc import Iterable
from itertools import count
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
COMPILED = "__pycache__"


def take_snapshot(target: Path, package: Path = PACKAGE) -> None:
    """Copy the tracked files of the checkout, as they are on disk, to the new folder ``target``.

    A module that git does not know yet is copied as well where it lies in the package, since the code that is copied
    may import it. Without a git checkout (an installed package) the package alone is copied.
    """
    beside = target.with_name(f".{target.name}")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        _copy(package.parent, _files_of(package), beside)
        beside.rename(target)
    except OSError:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def snapshot_of_now(folder: Path, package: Path = PACKAGE) -> Path:
    """The snapshot in a folder that holds the code as it is now; the first free name there if none does."""
    now = _digest(package.parent, _files_of(package))
    for number in count(1):
        snapshot = folder / ("code" if number == 1 else f"code-{number}")
        if not snapshot.exists() or _digest(snapshot, _files_below(snapshot)) == now:
            return snapshot
    raise AssertionError("unreachable")


def _files_of(package: Path) -> list[Path]:
    """What is copied, relative to the folder of the package."""
    root = package.parent
    files = _listed(root, "--cached") + _listed(root, "--others", "--exclude-standard", "--", f"{package.name}/*.py")
    if Path(package.name, "__init__.py") not in files:
        files = [package.name / name for name in _files_below(package)]
    # Others were deleted and git does not know yet, or are submodules.
    return [name for name in files if (root / name).is_file() or (root / name).is_symlink()]


def _files_below(folder: Path) -> list[Path]:
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file() or path.is_symlink())
    return [name for name in found if COMPILED not in name.parts]


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


def _copy(root: Path, files: Iterable[Path], target: Path) -> None:
    for name in files:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, target / name, follow_symlinks=False)


def _digest(root: Path, files: Iterable[Path]) -> str:
    """The same for the same names, contents and permissions."""
    digest = hashlib.sha256()
    for name in sorted(files):
        path = root / name
        content = bytes(path.readlink()) if path.is_symlink() else path.read_bytes()
        about = f"{name}\0{path.lstat().st_mode:o}\0{len(content)}\0"
        digest.update(about.encode(errors="surrogateescape") + content)
    return digest.hexdigest()
