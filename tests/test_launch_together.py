"""What the runs of one command have in common: ``fail_fast``, and the command after the last of them."""

import json
import sys
from pathlib import Path

import pytest

from imgnet.launch.commandline import first_run_shown_to_hydra
from imgnet.launch.together import run_here, words_of
from tests.commands import run_py

NOTE = "import sys; open('ran', 'a').write(sys.argv[1] + '\\n')"
"""A program that writes down what it was given."""


def sweep(digits_root: Path, folder: Path, *more: str) -> tuple[int, str, list[Path]]:
    """Carry out two runs, the first of which fails: exit status, what was said, run directories."""
    command = ["+experiments=quickstart", f"data.root={digits_root}", "cluster=simulated", "cluster.num_workers=2"]
    ending = f"on_sweep_end='{sys.executable}' -c \"{NOTE}\" {{sweep}}"
    done = run_py(*command, "max_steps=2", "optimizer.lr=1e30,0.1", ending, *more, cwd=folder, measured=True)
    return done.returncode, done.stderr, sorted(path.parent for path in folder.glob("multirun_outputs/*/*/*/run.json"))


def test_a_sweep_ends_with_its_first_failure_and_then_its_command_runs(tmp_path: Path, digits_root: Path) -> None:
    folder = tmp_path / "it's a folder"
    folder.mkdir()
    status, said, run_dirs = sweep(digits_root, folder, "fail_fast=true", "name='of two words'")
    assert status == 1
    assert "not begun, since fail_fast=true: " in said
    assert said.count("not begun") == 1
    assert "optimizer.lr=0.1" in said
    assert [json.loads((one / "run.json").read_text())["status"] for one in run_dirs] == ["failed"]
    assert (folder / "ran").read_text() == f"{run_dirs[0].parent}\n"


@pytest.mark.slow
def test_without_it_the_others_are_made_and_the_command_runs_once(tmp_path: Path, digits_root: Path) -> None:
    status, said, run_dirs = sweep(digits_root, tmp_path)
    assert status == 1, said
    assert [json.loads((one / "run.json").read_text())["status"] for one in run_dirs] == ["failed", "completed"]
    assert (tmp_path / "ran").read_text() == f"{run_dirs[0].parent}\n"


def test_a_command_that_fails_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run_here("false {sweep}", tmp_path)
    assert end.value.code == 1
    assert capfd.readouterr().err == f"on_sweep_end ended with 1: false {tmp_path}\n"


@pytest.mark.parametrize(
    "value", ["imgnet results {sweep}", "'my prog' {sweep} -o \"a b.html\"", "imgnet results --baseline topology=ring"]
)
def test_a_command_is_typed_as_in_a_shell(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra would take braces and further equals signs for its own grammar."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    monkeypatch.setattr(sys, "argv", ["run.py", f"on_sweep_end={value}"])
    with first_run_shown_to_hydra():
        word = sys.argv[1]
    assert OverridesParser.create().parse_override(word).value() == value


def test_a_folder_makes_no_further_words() -> None:
    folder = Path("/x; rm -rf $HOME/a 'b")
    assert words_of('imgnet results {sweep} -o "{sweep}/a b"', folder) == [
        "imgnet",
        "results",
        str(folder),
        "-o",
        f"{folder}/a b",
    ]
