"""``imgnet doctor``: right verdicts, on this machine and on one where things are missing."""

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from typer.testing import CliRunner, Result

from imgnet.cli import app
from imgnet.doctor import averaging as averaging_of
from imgnet.doctor import machine
from imgnet.doctor.services import data, wandb_login
from imgnet.doctor.verdict import Level
from tests.composing import composed
from tests.disks import mounted

DIGITS = ("data=digits",)


def doctor(*words: object) -> Result:
    return CliRunner().invoke(app, ["doctor", *map(str, words)])


def found_in(result: Result) -> dict[str, dict[str, str | None]]:
    return {line["subject"]: line for line in json.loads(result.stdout)}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the two workers, which have tests of their own."""
    monkeypatch.setattr("imgnet.doctor.averaging.averaging", lambda: machine.dali())


def test_this_machine_can_average_and_has_what_is_required(tmp_path: Path, digits_root: Path) -> None:
    result = doctor(*DIGITS, f"data.root={digits_root}", "--runs", tmp_path / "runs", "--json")
    assert result.exit_code == 0, result.output
    found = found_in(result)
    (*looked_at, last) = found
    assert looked_at == ["versions", "cores", "GPUs", "DALI", "Slurm", "run directories", "data", "wandb"]
    assert found["versions"]["verdict"] == "ok"
    assert last in ("gloo", "NCCL")
    assert "two workers averaged" in str(found[last]["found"])
    assert not (tmp_path / "runs").exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("quick")
def test_missing_data_are_an_error_with_what_to_do_and_a_status(tmp_path: Path) -> None:
    result = doctor(f"data.root={tmp_path}/none", "--runs", tmp_path)
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    (number,) = [number for number, line in enumerate(lines) if line.startswith("error")]
    assert f"data.root={tmp_path}/none" in lines[number]
    assert "-> data.root=FOLDER" in lines[number + 1]


def test_data_without_a_class_are_told(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
    verdict = data(composed("data=imagenet", f"data.root={tmp_path}").data)
    assert verdict.level is Level.error
    assert "1000" in verdict.found


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", megabytes=1) as full:
        (full / "data").write_bytes(bytes(900 * 2**10))
        verdict = machine.disk("run directories", full / "runs")
        assert (verdict.level, verdict.found) == (Level.error, f"{full}: no space left on device")
        assert [path.name for path in full.iterdir()] == ["data"]


def test_a_place_that_may_not_be_written_is_told() -> None:
    assert machine.disk("run directories", Path("/proc/runs")).level is Level.error


@pytest.mark.skipif(shutil.which("sinfo") is None, reason="slurm-wlm is not installed")
def test_a_slurm_that_does_not_answer_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens on it
        conf = tmp_path / "slurm.conf"
        conf.write_text(
            f"ClusterName=c\nSlurmctldHost=localhost(127.0.0.1)\nSlurmctldPort={taken.getsockname()[1]}\n"
            "MessageTimeout=2\nAuthType=auth/munge\nNodeName=n1\nPartitionName=p Nodes=n1\n"
        )
        monkeypatch.setenv("SLURM_CONF", str(conf))
        verdicts = [machine.slurm(is_needed) for is_needed in (True, False)]
    assert [verdict.level for verdict in verdicts] == [Level.error, Level.warning]
    assert all("cluster=local" in verdict.remedy for verdict in verdicts)


def test_no_slurm_is_an_error_for_a_run_that_wants_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert machine.slurm(is_needed=True).level is Level.error
    assert machine.slurm(is_needed=False).level is Level.ok


@pytest.mark.parametrize(
    ("sinfo", "level", "words"),
    [
        ("echo 'gpu* up 4'; echo 'old down 2'", Level.ok, "gpu* (4 nodes)"),
        ("echo 'old down 2'", Level.error, "no partition is up"),
        ("echo 'slurm_load_partitions: Unable to contact' >&2; exit 1", Level.error, "Unable to contact"),
    ],
)
def test_the_words_of_sinfo_are_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sinfo: str, level: Level, words: str
) -> None:
    for name, text in (("sinfo", sinfo), ("sbatch", "")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    verdict = machine.slurm(is_needed=True)
    assert verdict.level is level
    assert words in verdict.found
    assert "old" not in verdict.found


def test_what_is_missing_or_too_old_is_named() -> None:
    assert machine._unmet(Requirement("no-such-package")) == "no-such-package is not installed"
    assert str(machine._unmet(Requirement("torch>=99"))).endswith("is not >=99")
    assert machine._unmet(Requirement("torch>=2")) is None
    assert machine._unmet(Requirement("no-such-package; extra == 'dali'")) is None


def test_fewer_cores_than_workers_are_a_warning() -> None:
    assert machine.cores(1).level is Level.ok
    verdict = machine.cores(10_000)
    assert verdict.level is Level.warning
    assert "for 10000 workers" in verdict.found


def test_workers_that_fail_are_told_with_their_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nosuchif0")
    verdict = averaging_of.averaging()
    assert verdict.level is Level.error
    assert verdict.found.startswith("two workers did not average: ")


def test_a_login_is_seen_without_the_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert wandb_login().level is Level.warning
    assert wandb_login().remedy == "wandb login"


def test_the_doctor_looks_at_one_run(tmp_path: Path) -> None:
    result = doctor("topology=ring,exp")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "2 runs" in result.stderr
    result = doctor("topolgy=ring")
    assert result.exit_code == 2
    assert "topology" in result.stderr


def test_the_command_line_imports_no_torch() -> None:
    code = "import sys, imgnet.doctor.cli, imgnet.doctor.machine, imgnet.doctor.averaging, imgnet.doctor.services; "
    subprocess.run([sys.executable, "-c", code + "assert 'torch' not in sys.modules"], check=True)
