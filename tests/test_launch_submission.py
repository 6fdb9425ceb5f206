"""The way of a run through Slurm's hands and back, with stand-ins for its commands; ``tests/slurm`` has a real one."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from typer.testing import CliRunner

from imgnet import rundir
from imgnet.cli import app
from imgnet.config import RunConfig, as_yaml
from imgnet.launch.causes import deaths_told_by_srun
from imgnet.launch.slurm import job
from imgnet.rundir import ExitRecord
from tests.commands import ROOT, environment, run_py
from tests.slurm.private import free_ports
from tests.test_launch_slurm import composed

COLUMNS = '{printf "%-20s%-20s%-20s%-10d%s\\n", $1, $2, $3, $5, $4}'
SBATCH = '#!/bin/sh\ncase "$*" in *--test-only*) exit 0;; esac\necho Submitted batch job 7\n'


@pytest.fixture
def bin_dir(tmp_path: Path) -> Path:
    """A folder of commands: an sbatch that takes everything, and a squeue that shows what stands in ``queue``:
    number, index, state, reason and restarts, if any."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in {
        "sbatch": SBATCH,
        "squeue": f"#!/bin/sh\nawk -F'|' '{COLUMNS}' '{folder}/queue'\n",
        "scontrol": "#!/bin/sh\necho 'ClusterName = here'\n",
        "scancel": f"#!/bin/sh\necho \"$@\" >> '{folder}/cancelled'\n",
    }.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    (folder / "queue").touch()
    return folder


@pytest.fixture
def work(tmp_path: Path, bin_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder, which the test is in, with the stand-ins on the path."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", f"{bin_dir}:/usr/bin:/bin")
    return folder


def _submit(work: Path, *overrides: str, measured: bool = False) -> subprocess.CompletedProcess[str]:
    return run_py("+experiments=quickstart", *overrides, cwd=work, measured=measured)


def _runs(work: Path) -> list[Path]:
    return sorted(file.parent for file in work.glob("multirun_outputs/*/*/*/run.json"))


def test_sweep_is_queued_skipped_lost_and_resubmitted(work: Path, bin_dir: Path) -> None:
    done = _submit(work, "seed=1,2", "cluster=4xA40", measured=True)
    assert done.returncode == 0, done.stderr
    assert "submitted job 7: 2 runs with 1 node of 4 A40 (cluster=4xA40)" in done.stdout
    first, second = _runs(work)
    assert rundir.read_json(first / "run.json")["status"] == "queued"
    assert rundir.read_json(first / "run.json")["command"] == [
        "run.py",
        "+experiments=quickstart",
        "seed=1,2",
        "cluster=4xA40",
    ]
    assert rundir.read_json(second / "submission.json")["slurm_job_id"] == "7_1"
    assert (first.parent / "code/imgnet/train.py").is_file()

    (bin_dir / "queue").write_text("7|0|RUNNING|None\n7|1|PENDING|Priority\n")
    again = _submit(work, "seed=1,2", "cluster=4xA40")
    assert again.stdout.count("skipped, on its way") == 2
    shown = CliRunner().invoke(app, ["status"])
    assert "RUNNING" in shown.stdout
    assert "PENDING (Priority)" in shown.stdout
    cancelled = CliRunner().invoke(app, ["cancel", str(first.parent)])
    assert cancelled.exit_code == 0
    assert (bin_dir / "cancelled").read_text() == "7_0 7_1\n"

    rundir.finish(first, "completed")
    rundir.write_summary(first, {"val_acc1": 90.0})
    (bin_dir / "queue").write_text("")  # Slurm has forgotten the job, and the second run left no word
    again = CliRunner().invoke(app, ["resubmit", str(first.parent)])
    assert again.exit_code == 0, again.output
    assert "submitted job 7: 1 run with" in again.output
    assert rundir.read_json(second / "submission.json")["slurm_job_id"] == "7"
    assert [path.name for path in first.parent.glob("code*")] == ["code"]
    rundir.finish(second, "completed")
    rundir.write_summary(second, {"val_acc1": 91.0})
    assert "nothing to submit" in CliRunner().invoke(app, ["resubmit", str(second)]).output

    again = _submit(work, "seed=1,2", "cluster=4xA40", "cluster.wait=true", measured=True)
    assert again.stdout.count("skipped, completed before") == 2
    assert len(_runs(work)) == 2


def test_what_to_type_next_can_be_typed(work: Path) -> None:
    done = _submit(work, "cluster=4xA40", r'''hydra.sweep.dir="it's \"mine\" $HOME"''')
    assert done.returncode == 0, done.stderr
    status, logs = (line.removeprefix("follow:").strip() for line in done.stdout.splitlines()[-2:])
    folder = 'it\'s "mine" $HOME'
    assert shlex.split(status) == ["imgnet", "status", folder]
    assert shlex.split(logs) == ["imgnet", "logs", f"{folder}/0", "-f"]


@pytest.mark.parametrize("what", ["--test-only", "submission_file"])
def test_a_controller_that_hangs_is_no_refusal(work: Path, bin_dir: Path, what: str) -> None:
    words = "Socket timed out on send/recv operation"
    (bin_dir / "sbatch").write_text(
        f'#!/bin/sh\ncase "$*" in *{what}*) echo "{words}" >&2; exit 1;; esac\necho Submitted batch job 7\n'
    )
    done = _submit(work, "cluster=4xA40")
    assert done.returncode == 2
    assert re.search(rf"Slurm did not answer sbatch in \d+ s \({words}\)", done.stderr)
    assert "refuse" not in done.stderr
    assert done.stderr.count("\n") == 1
    assert ("whether it took" in done.stderr) == (what == "submission_file")


@pytest.mark.parametrize("waits", ["cluster.wait=true", "hydra/sweeper=basic"])  # another sweeper may need results
def test_waiting_command_tells_how_each_run_ended(work: Path, bin_dir: Path, waits: str) -> None:
    (bin_dir / "queue").write_text("7|0|FAILED|NonZeroExitCode\n7|1|NODE_FAIL|NodeDown\n")
    done = _submit(work, "seed=1,2", "cluster=4xA40", waits, measured=True)
    assert done.returncode == 1, done.stderr
    _, second = _runs(work)
    assert "2 of 2 runs failed" in done.stderr
    assert f"{second}: " in done.stderr
    assert "Slurm lost a node" in done.stdout
    assert "NonZeroExitCode (Slurm: FAILED)" in done.stdout


def test_an_array_needs_folders_named_by_number(work: Path) -> None:
    refused = _submit(work, "cluster=4xA40", "hydra.sweep.subdir=a/${hydra:job.num}")
    assert refused.returncode == 2
    assert "hydra.sweep.subdir" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_tools_refuse_in_one_line(work: Path) -> None:
    for arguments in (["status"], ["logs", "nowhere"], ["cancel", "nowhere"], ["resubmit", "nowhere"]):
        refused = CliRunner().invoke(app, arguments)
        assert refused.exit_code == 2, arguments
        assert refused.stderr.count("\n") == 1, refused.stderr


def _prepared(folder: Path, config: RunConfig) -> Path:
    rundir.create(
        folder,
        as_yaml(config),
        overrides=[],
        seed=1,
        epochs=config.epochs,
        world_size=config.cluster.nodes * config.cluster.gpus_per_node,  # type: ignore[attr-defined]
        identity="",
        status="queued",
    )
    return folder


@pytest.fixture
def in_job(monkeypatch: pytest.MonkeyPatch, work: Path) -> Path:
    """The directory of a run whose job this process is the first of."""
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "n1"}.items():
        monkeypatch.setenv(name, value)
    return _submitted(_prepared(work / "run", composed("cluster=4xA40")))


def _submitted(run_dir: Path) -> Path:
    note = {"slurm_job_id": "7", "cluster": "here", "code": str(ROOT), "run.py": []}
    rundir.write_atomically(run_dir / "submission.json", json.dumps(note))
    return run_dir


def _python(code: str) -> list[str]:
    return [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom imgnet import rundir\n{code}"]


def test_job_writes_how_its_run_ended(in_job: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = f"__import__('pathlib').Path({str(in_job)!r})"
    rundir.write_run(in_job, commit="as submitted")
    assert job.main(in_job, _python(f"rundir.finish({folder}, 'completed')")) == 0
    run = rundir.read_json(in_job / "run.json")
    assert (run["hosts"], run["commit"], run["earlier"]) == (["n1"], "as submitted", [])
    rundir.write_run(in_job, status="queued")

    record = ExitRecord(2, "raised", time.time(), "ValueError: x", "Traceback: ...\n")
    for rank in (0, 1, 3):
        rundir.write_exit_record(in_job, ExitRecord(rank, "completed", time.time(), ""))
    failing = f"rundir.write_exit_record({folder}, rundir.{record!r})\nsys.exit(3)"
    everybody = "\n".join(
        f"rundir.write_exit_record({folder}, rundir.ExitRecord({rank}, 'completed', 0.0, ''))" for rank in (0, 1, 3)
    )
    assert job.main(in_job, _python(f"{everybody}\n{failing}")) == 3
    assert rundir.read_json(in_job / "run.json")["error"] == "rank 2 failed: ValueError: x"
    assert "Traceback: ..." in capfd.readouterr().err

    (in_job / "logs/slurm.log").write_text("what an earlier attempt said\n")
    last = "ModuleNotFoundError: no module\\nsrun: error: n1: task 0: Exited\\n"
    assert job.main(in_job, _python(f"({folder} / 'logs/slurm.log').open('a').write('{last}')")) == 1
    said = "no worker started, srun ended with 0: ModuleNotFoundError: no module"
    assert rundir.read_json(in_job / "run.json")["error"] == said


def test_first_word_of_a_worker_stands(in_job: Path) -> None:
    """Its thread for signals and its main thread may speak at once."""
    words = [ExitRecord(0, how, 0.0, "x" * size) for size, how in enumerate(["raised", *["terminated"] * 20])]
    with ThreadPoolExecutor(len(words)) as pool:
        list(pool.map(lambda word: rundir.write_exit_record(in_job, word), words))
    assert set(rundir.read_exit_records(in_job)) == {0}
    rundir.write_exit_record(in_job, words[0])
    rundir.write_exit_record(in_job, words[1])
    assert rundir.read_exit_records(in_job)[0].how == "raised"


def test_job_that_slurm_ends_says_why(in_job: Path, bin_dir: Path) -> None:
    (bin_dir / "queue").write_text("7|N/A|COMPLETING|TimeLimit\n")
    ending = f"import os, signal\nos.kill({os.getpid()}, signal.SIGTERM)\nsys.exit(1)"
    assert job.main(in_job, _python(ending)) == 1
    assert rundir.read_json(in_job / "run.json")["error"] == "the time limit was reached (cluster.timeout_min=480)"


def test_two_nodes_meet_and_train(work: Path, digits_root: Path) -> None:
    overrides = ["cluster=8xA40", "max_steps=2", "cluster.gpus_per_node=1", f"data.root={digits_root}"]
    run_dir = _submitted(_prepared(work / "run", composed(*overrides, "topology=allreduce")))
    words = ["+experiments=quickstart", *overrides, "topology=ring"]  # as if conf/ had changed since
    told = {"IMGNET_RUN_DIR": str(run_dir), "IMGNET_CLAIM": "1", "SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "2"}
    told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(1)[0]), "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}
    tasks = []
    for rank in range(2):
        env = environment(SLURM_PROCID=str(rank), SLURM_LOCALID="0", SLURM_NODEID=str(rank), **told)
        command = [sys.executable, str(ROOT / "run.py"), *words]
        tasks.append(subprocess.Popen(command, cwd=work, env=env, stderr=subprocess.PIPE, text=True))
    said = [task.communicate(timeout=120)[1] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], said
    assert rundir.read_json(run_dir / "run.json")["status"] == "completed"
    assert {record.how for record in rundir.read_exit_records(run_dir).values()} == {"completed"}
    assert "topology.name=allreduce, as it was submitted; composed here it would be ring" in said[0]
    assert said[1] == ""
    assert {path.name for path in work.iterdir()} == {"run"}


def test_what_srun_tells_names_who_died(in_job: Path) -> None:
    lines = (
        "srun: error: n2: task 5: Killed",
        "srun: error: n1: tasks 0-2,4: Terminated",
        "srun: error: n1: task 3: Segmentation fault (core dumped)",
        "srun: error: n2: tasks 6-7: Exited with exit code 7",
        "srun: error: Timed out waiting for job step to complete",
    )
    log = in_job / "logs/slurm.log"
    log.write_text("srun: error: n1: task 0: Killed\n")  # in an earlier attempt
    before = log.stat().st_size
    with log.open("a") as file:
        file.write("\n".join(lines) + "\n")
    assert list(deaths_told_by_srun(in_job, before).items()) == [(5, -9), (3, -11), (6, 7), (7, 7)]


def test_run_that_is_over_is_not_cancelled_while_its_job_is_wound_up(in_job: Path, bin_dir: Path) -> None:
    (bin_dir / "queue").write_text("7|N/A|COMPLETING|None\n")
    rundir.finish(in_job, "cancelled", "cancelled with imgnet cancel")
    again = CliRunner().invoke(app, ["cancel", str(in_job)])
    assert (again.exit_code, again.stderr) == (2, "none of these runs is in Slurm's queue\n")
    rundir.finish(in_job, "preempted")
    assert CliRunner().invoke(app, ["cancel", str(in_job)]).exit_code == 0
    assert (bin_dir / "cancelled").read_text() == "7\n"


def test_followed_log_ends_with_the_run(work: Path, bin_dir: Path) -> None:
    run_dir = _prepared(work / "run", composed("cluster=4xA40"))
    rundir.write_atomically(run_dir / "submission.json", '{"slurm_job_id": "7"}')
    (run_dir / "logs/slurm.log").write_text("epoch 1/3\n")
    rundir.finish(run_dir, "completed")
    assert CliRunner().invoke(app, ["logs", str(run_dir), "-f"]).output == "epoch 1/3\n"
    assert CliRunner().invoke(app, ["logs", str(run_dir), "--rank", "3"]).exit_code == 2
