"""What a run directory says of the code that it was made with."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgnet import rundir


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A repository with one file, which this package believes to be its own."""
    root = tmp_path / "repo"
    root.mkdir()
    (root / "model.py").write_text("width = 64\n")
    for arguments in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a"],
    ):
        subprocess.run(["git", *arguments], cwd=root, check=True)
    monkeypatch.setattr(rundir, "__file__", str(root / "rundir.py"))
    rundir._git.cache_clear()
    yield root
    rundir._git.cache_clear()


def make(run_dir: Path) -> Path:
    rundir.create(run_dir, "a: 1\n", overrides=[], seed=1, epochs=1, world_size=1, identity="0")
    return run_dir


def edit(checkout: Path, text: bytes) -> None:
    (checkout / "model.py").write_bytes(text)
    rundir._git.cache_clear()


def test_a_run_keeps_how_its_code_differs_from_the_commit(checkout: Path, tmp_path: Path) -> None:
    edit(checkout, "width = 96  # größer\n".encode("latin-1"))
    kept = (make(tmp_path / "run") / "code.diff").read_bytes()
    assert b"-width = 64\n+width = 96" in kept


def test_the_code_can_be_made_again_of_what_was_kept(checkout: Path, tmp_path: Path) -> None:
    content = "depth = 50\r\n\u00e4 = 1\n\n".encode("latin-1")
    edit(checkout, b"a = 1\n\n" + content)
    for arguments in (["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "b"]):
        subprocess.run(["git", *arguments], cwd=checkout, check=True)
    edit(checkout, b"a = 2\n\n" + content)
    kept = make(tmp_path / "run") / "code.diff"
    subprocess.run(["git", "checkout", "-q", "."], cwd=checkout, check=True)
    subprocess.run(["git", "apply", str(kept)], cwd=checkout, check=True)
    assert (checkout / "model.py").read_bytes() == b"a = 2\n\n" + content


def test_a_clean_checkout_leaves_nothing(checkout: Path, tmp_path: Path) -> None:
    assert not (make(tmp_path / "run") / "code.diff").exists()


def test_the_code_of_an_earlier_part_of_a_run_is_kept_as_well(checkout: Path, tmp_path: Path) -> None:
    edit(checkout, b"width = 96\n")
    run_dir = make(tmp_path / "run")
    rundir.reopen(run_dir)
    assert not (run_dir / "code.1.diff").exists()
    edit(checkout, b"width = 128\n")
    rundir.reopen(run_dir)
    edit(checkout, b"width = 64\n")
    rundir.reopen(run_dir)
    kept = [(run_dir / f"code.{number}.diff").read_text()[-5:-1] for number in (1, 2)]
    assert kept == ["= 96", " 128"]
    assert not (run_dir / "code.diff").exists()


def test_an_enormous_diff_is_cut(checkout: Path, tmp_path: Path) -> None:
    edit(checkout, b"x" * 2 * rundir.MOST_OF_DIFF)
    assert (make(tmp_path / "run") / "code.diff").stat().st_size <= rundir.MOST_OF_DIFF


def test_what_killed_processes_left_is_removed_when_the_run_goes_on(tmp_path: Path) -> None:
    run_dir = make(tmp_path / "run")
    left = [".run.json.12.13", "logs/.rank_0.exit.json.12.13", "checkpoints/.final.safetensors.12"]
    kept = [".run.json", ".keep", "metrics.csv.1", "checkpoints/.notes.txt"]
    for name in [*left, *kept, ".summary.json.14.15"]:
        (run_dir / name).write_text("half")
        os.utime(run_dir / name, (0, 0))
    (run_dir / ".summary.json.14.15").touch()  # somebody writes it at this moment
    (run_dir / "checkpoints/.step_0000000044.partial").mkdir()
    (run_dir / "checkpoints/step_0000000022").mkdir()
    rundir.reopen(run_dir)
    names = {str(path.relative_to(run_dir)) for path in run_dir.rglob("*")}
    assert not names & {*left, "checkpoints/.step_0000000044.partial"}
    assert names >= {*kept, ".summary.json.14.15", "checkpoints/step_0000000022", "run.json"}
