"""The code as it is now, copied for jobs that start later: whoever edits a file meanwhile changes no queued run."""

import hashlib
import shutil
import subprocess
from collections.abc import Iterable
from itertools import count
from pathlib import Path

PACKAGE = Path(__file__).parents[2]
BESIDE = ("run.py", "conf", "experiments", "hydra_plugins")
"""What a run is made of beside the package."""
COMPILED = "__pycache__"


def take_snapshot(target: Path, package: Path = PACKAGE) -> None:
    """Copy the tracked files of the checkout, as they are on disk, to the new folder ``target``.

    What git does not know yet is copied as well where a run may be made of it: modules of the package, options of
    ``conf/``. Without git those files are copied that lie in the package and in :data:`BESIDE`.
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
    made_of = (f"{package.name}/*.py", *BESIDE)
    files = _listed(root, "--cached") + _listed(root, "--others", "--exclude-standard", "--", *made_of)
    if Path(package.name, "__init__.py") not in files:
        is_checkout = (root / "run.py").is_file()  # an installed package lies beside others'
        files = [file for name in (package.name, *(BESIDE if is_checkout else ())) for file in _files_in(root, name)]
    # Others were deleted and git does not know yet, or are submodules.
    return [name for name in files if (root / name).is_file() or (root / name).is_symlink()]


def _files_in(root: Path, name: str) -> list[Path]:
    """A file or a link itself, or the files below a folder, relative to ``root``."""
    path = root / name
    if path.is_dir() and not path.is_symlink():
        return [name / file for file in _files_below(path)]
    return [Path(name)]


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
