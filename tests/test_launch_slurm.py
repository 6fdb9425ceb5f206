"""Submission without a Slurm: scripts, arrays, snapshots, cores, and what is made of Slurm's answers."""

import re
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hydra.errors import HydraException
from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import BaseSubmititLauncher
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from rich.console import Console
from submitit import SlurmExecutor
from typer.testing import CliRunner

from hydra_plugins.imgnet_hydra.plugins import ImgnetLauncher
from imgnet import rundir
from imgnet.cli import app
from imgnet.config import RunConfig, SlurmConfig, as_yaml, parse, parse_saved, plain, read
from imgnet.config.explain import explain
from imgnet.config.ranges import declared
from imgnet.config.renamed import first_name, renamed
from imgnet.config.settings import of_the_result
from imgnet.launch.follow.observe import observe
from imgnet.launch.follow.status import duration, show_status
from imgnet.launch.repeats import identity
from imgnet.launch.slurm import commands as slurm
from imgnet.launch.slurm import job
from imgnet.launch.slurm.batch import PASSED, QueuedRun, arrays_of, batch_script, executor_of, problems, ranges
from imgnet.launch.slurm.commands import JobState
from imgnet.launch.slurm.snapshot import snapshot_of_now, take_snapshot
from imgnet.launch.workers.cores import cores_of_run, parse_core_list, share_of_cores
from imgnet.suggest import RENAMED
from tests.commands import run_py
from tests.composing import compose_whole


def composed(*overrides: str) -> RunConfig:
    return parse(compose_whole("+experiments=quickstart", *overrides))


def queued(*choices: Sequence[str], folder: Path = Path("/runs")) -> list[QueuedRun]:
    return [
        QueuedRun(number, composed(*overrides), list(overrides), folder / str(number), sources=[])
        for number, overrides in enumerate(choices)
    ]


def script_of(*choices: Sequence[str], folder: Path = Path("/runs"), **changes: object) -> str:
    runs = queued(*choices, folder=folder)
    for number, run in enumerate(runs):
        assert isinstance(run.config.cluster, SlurmConfig)
        runs[number] = replace(run, config=replace(run.config, cluster=replace(run.config.cluster, **changes)))
    (array,) = arrays_of(runs, folder / "code", Path("/work dir"))
    return batch_script(array)


def test_runs_of_equal_resources_are_one_array() -> None:
    runs = queued(
        ["seed=1", "cluster=4xA40"],
        ["seed=1", "cluster=8xA40"],
        ["seed=2", "cluster=4xA40"],
        ["seed=2", "cluster=8xA40"],
    )
    arrays = arrays_of(runs, Path("/code"), Path("/here"))
    assert [[run.number for run in array.runs] for array in arrays] == [[0, 2], [1, 3]]
    assert "#SBATCH --array=0,2\n" in batch_script(arrays[0])
    assert "#SBATCH --nodes=2\n" in batch_script(arrays[1])


def test_script_asks_for_what_the_preset_says() -> None:
    script = script_of(["cluster=32xT4"], mem_gb=100, partition="gpu", account="me", array_parallelism=3)
    options = {line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")}
    assert {
        "--nodes=4",
        "--ntasks-per-node=8",
        "--gres=gpu:T4:8",
        "--cpus-per-task=4",
        "--time=720",
        "--mem=100GB",
        "--partition=gpu",
        "--account=me",
        "--output=/runs/0/logs/slurm.log",
        "--requeue",
        "--signal=USR2@120",
    } <= options
    assert not any(option.startswith("--array") for option in options)
    assert "export NCCL_SOCKET_IFNAME=ib0\n" in script
    assert "--kill-on-bad-exit=1" in script


def test_every_run_of_an_array_has_its_own_directory_and_log() -> None:
    script = script_of(
        ["seed=1", "cluster=4xA40"], ["seed=2", "cluster=4xA40"], folder=Path("/a b/100%"), array_parallelism=1
    )
    assert "#SBATCH --array=0-1%1\n" in script
    assert "#SBATCH --output='/a b/100%%/%a/logs/slurm.log'\n" in script
    assert "run='/a b/100%'/\"$SLURM_ARRAY_TASK_ID\"\n" in script


@given(st.text(st.characters(exclude_characters="\0\n\r", exclude_categories=["Cs"]), min_size=1, max_size=20))
def test_values_reach_the_shell_as_they_were(value: str) -> None:
    array = arrays_of(ONE_RUN, Path("/code"), Path("/here"))[0]
    script = batch_script(
        replace(array, cluster=replace(array.cluster, env={"SAID": value}, srun_args=[f"--comment={value}"]))
    )
    export = next(line for line in script.split("\n") if line.startswith("export SAID="))
    assert shlex.split(export) == ["export", f"SAID={value}"]
    srun = script.partition("  srun ")[2].partition(" \\\n")[0]
    assert shlex.split(srun)[-1] == f"--comment={value}"


ONE_RUN = queued(["cluster=4xA40"])


def test_script_is_shell_and_dry_run_prints_it(tmp_path: Path) -> None:
    done = run_py(
        "+experiments=quickstart",
        "zip=[cluster,seed]",
        "cluster=4xA40,8xA40",
        "seed=3,4",
        "cluster.dry_run=true",
        "cluster.setup=[module load cuda]",
        "cluster.qos=high",
        "+cluster.additional_parameters.exclusive=true",
        cwd=tmp_path,
        PATH="/usr/bin:/bin",
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []
    first, second = done.stdout.partition("# configuration of run")[0].split("# batch script of ")[1:]
    assert {"#SBATCH --qos=high", "#SBATCH --exclusive"} <= set(first.splitlines())
    assert "\nmodule load cuda\n" in first
    assert "cluster=8xA40" in second.splitlines()[0]
    assert done.stdout.count("\ncluster:\n") == 2
    assert "predicted, not measured; computation: " in done.stdout
    assert [line.split()[1] for line in done.stdout.splitlines() if line.startswith("  ring ")] == ["4xA40", "8xA40"]
    script = first.split("\n", 1)[1]
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


def test_free_parts_of_a_cluster_are_checked() -> None:
    (run,) = ONE_RUN
    assert isinstance(run.config.cluster, SlurmConfig)
    options = {
        "Q": "1",
        "array": "0-3",
        "qos": "a",
        "mail_user": "me",
        "hold": False,
        "nice": [1],
        "x": "",
        "spread": 3,
    }
    bad = replace(run.config.cluster, env={"A B": "1"}, additional_parameters=options, constraint="a\nb")
    bad = replace(bad, srun_args=["--mpi=none", "nan", "--", "-n"], tasks_per_node=3, mem_gb=4, mem_per_gpu="1G")
    assert problems(bad) == [
        "cluster.env.A B: no name of a variable",
        "cluster.additional_parameters.Q: no long name of an sbatch option (such as hold or exclusive)",
        "cluster.additional_parameters.array is set by this package; remove it",
        "cluster.additional_parameters.qos has a key of its own; write cluster.qos=...",
        "cluster.additional_parameters.mail_user has a key of its own; write cluster.mail_user=...",
        "cluster.additional_parameters.hold=False: must be a word or a number; an option without a value is true",
        "cluster.additional_parameters.nice=[1]: must be a word or a number; an option without a value is true",
        "cluster.additional_parameters.x='': must be a word or a number; an option without a value is true",
        "cluster.constraint='a\\nb': must be one line",
        "cluster.srun_args[1]='nan': must be an option with its value, such as --mpi=none",
        "cluster.srun_args[2]='--': must be an option with its value, such as --mpi=none",
        "cluster.tasks_per_node=3 contradicts cluster.gpus_per_node=4: "
        "a task is a worker, one for each GPU; leave it out",
        "cluster.mem_gb and cluster.mem_per_gpu say the same thing twice; leave all but one out",
    ]


def test_a_cluster_has_the_names_of_submitit_and_the_plugin() -> None:
    """Each of theirs is a key, or is refused with what says it here; of each that is a key submitit gets the value."""
    theirs = {*SlurmExecutor._equivalence_dict(), *SlurmExecutor._valid_parameters(), *declared(SlurmQueueConf)}
    theirs -= set(SlurmExecutor._equivalence_dict().values()) - set(declared(SlurmQueueConf))
    ours = set(declared(SlurmConfig))
    assert ours - theirs == {"accelerator", "dry_run", "env", "gpu_type", "network", "runs_per_job", "wait"}
    assert {*PASSED, "setup", "srun_args", "additional_parameters", "signal_delay_s"} < ours & theirs
    for name in theirs - ours - {"_target_", "use_srun", "num_gpus"}:
        with pytest.raises(HydraException) as caught:
            composed("cluster=4xA40", f"cluster.{name}=1")
        assert re.match(f"there is no cluster.{name}(:| any more;) .*[a-z]", explain(caught.value)), name


def test_jobs_are_submitits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One array whose indices are the runs' numbers, outside the job that the command may be typed in."""
    assert issubclass(ImgnetLauncher, BaseSubmititLauncher)
    runs = [
        replace(run, number=3 * run.number, run_dir=tmp_path / str(3 * run.number))
        for run in queued(["seed=1", "cluster=4xA40"], ["seed=2", "cluster=4xA40"])
    ]
    (tmp_path / "sbatch").write_text(f'#!/bin/sh\nenv > "{tmp_path}/env"\necho Submitted batch job 7\n')
    (tmp_path / "sbatch").chmod(0o755)
    for name, value in {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_NTASKS": "9", "SLURM_CONF": "mine"}.items():
        monkeypatch.setenv(name, value)
    (array,) = arrays_of(runs, tmp_path / "code", tmp_path)
    executor = executor_of(array)
    jobs = executor.map_array(job.main, [run.run_dir for run in array.runs])
    assert [one.job_id for one in jobs] == ["7_0", "7_3"]
    assert executor.taken == ["7"]
    assert (tmp_path / "slurm/7_submission.sh").read_text() == batch_script(array)
    seen = (tmp_path / "env").read_text().splitlines()
    assert [line for line in seen if line.startswith("SLURM")] == ["SLURM_CONF=mine"]


def test_names_that_keys_had_are_refused_and_read() -> None:
    for old, new in RENAMED.items():
        with pytest.raises(HydraException) as caught:
            composed("cluster=4xA40", f"{old}.x=1" if old.endswith("sbatch") else f"{old}=1")
        assert explain(caught.value).startswith(f"there is no {old} any more; it is {new}")
    old = plain(composed("cluster=4xA40"))
    for key, name in RENAMED.items():
        old["cluster"][key.removeprefix("cluster.")] = old["cluster"].pop(name.removeprefix("cluster."))
    old["cluster"] |= {"sbatch": {"hold": "", "nice": "3"}, "notice_min": 4}
    words = ["+cluster.sbatch.hold=''", "+cluster.sbatch.nice='3'", "cluster.notice_min=4", "seed=1"]
    assert parse_saved(OmegaConf.create(old)) == composed("cluster=4xA40", *map(renamed, words))
    assert renamed("~cluster.sbatch.hold") == "~cluster.additional_parameters.hold"
    assert "cluster.cpus_per_gpu" in map(first_name, of_the_result(composed("cluster=4xA40")))


@given(st.sets(st.integers(0, 60), min_size=1))
def test_ranges_name_every_number_once(numbers: set[int]) -> None:
    assert parse_core_list(ranges(numbers)) == numbers


@given(st.integers(1, 40), st.integers(1, 9), st.data())
def test_cores_are_shared_evenly_and_nearest_first(cores: int, workers: int, data: st.DataObject) -> None:
    near = [data.draw(st.sets(st.integers(0, cores - 1))) for _ in range(workers)]
    shares = share_of_cores(set(range(cores)), near)
    if cores < workers:
        assert shares == [set(range(cores))] * workers
        return
    assert {len(share) for share in shares} == {cores // workers}
    assert sum(map(len, shares)) == len(set().union(*shares))
    assert near[0] <= shares[0] or shares[0] <= near[0]


def test_two_sockets_are_shared_by_their_own_gpus() -> None:
    assert share_of_cores(set(range(8)), [{4, 5, 6, 7}, {0, 1, 2, 3}]) == [{4, 5, 6, 7}, {0, 1, 2, 3}]


def test_runs_of_one_job_have_cores_of_their_own() -> None:
    shares = [cores_of_run([2, 3, 6, 7, 9], index, 2) for index in range(2)]
    assert shares == [[2, 6, 9], [3, 7]]
    assert [cores_of_run([2, 5], index, 3) for index in range(3)] == [[2], [5], [2]]


@pytest.mark.parametrize("cluster", ["local", "4xA40", "64xT4", "16xA100"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "accum_adam"])
def test_configuration_is_read_back_as_it_was(cluster: str, optimizer: str, tmp_path: Path) -> None:
    config = composed(f"cluster={cluster}", f"optimizer={optimizer}", "topology=allreduce", "name='1e5'")
    (tmp_path / "config.yaml").write_text(as_yaml(config))
    assert read(tmp_path / "config.yaml") == config
    assert as_yaml(config) == OmegaConf.to_yaml(OmegaConf.create(plain(config)))


def test_same_result_is_the_same_run() -> None:
    run = identity(composed("cluster=4xA40"))
    assert identity(composed("cluster=4xA40", "cluster.partition=x", "tracking.project=y", "cluster.wait=true")) == run
    for change in ("seed=2", "cluster=8xA40", "optimizer.lr=1", "name=other", "cluster.gpu_type=A100"):
        assert identity(composed("cluster=4xA40", change)) != run, change


def test_snapshot_is_the_tracked_files_as_they_are(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    for name in ("pkg/__init__.py", "pkg/deep/mod.py", "conf/a.yaml", "gone.py", "secret.env", "run.py"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text("old")
    subprocess.run(["git", "init", "-q"], cwd=checkout, check=True)
    subprocess.run(["git", "add", "pkg", "conf", "gone.py"], cwd=checkout, check=True)
    (checkout / "conf/a.yaml").write_text("edited")
    (checkout / "pkg/new.py").write_text("new")
    (checkout / "conf/new.yaml").write_text("new")
    (checkout / "gone.py").unlink()
    take_snapshot(tmp_path / "code", checkout / "pkg")
    files = {str(path.relative_to(tmp_path / "code")) for path in (tmp_path / "code").rglob("*") if path.is_file()}
    assert files == {"pkg/__init__.py", "pkg/deep/mod.py", "pkg/new.py", "conf/a.yaml", "conf/new.yaml", "run.py"}
    assert (tmp_path / "code/conf/a.yaml").read_text() == "edited"


def test_snapshot_without_git_is_the_package(tmp_path: Path) -> None:
    (tmp_path / "site/pkg/__pycache__").mkdir(parents=True)
    (tmp_path / "site/pkg/__init__.py").touch()
    (tmp_path / "site/other.py").touch()
    take_snapshot(tmp_path / "code", tmp_path / "site/pkg")
    assert [path.name for path in (tmp_path / "code").rglob("*")] == ["pkg", "__init__.py"]


def test_snapshot_without_git_is_what_a_run_is_made_of(tmp_path: Path) -> None:
    for name in ("pkg/__init__.py", "conf/a.yaml", "data/image.jpg", "run.py"):
        (tmp_path / "unpacked" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "unpacked" / name).touch()
    (tmp_path / "unpacked/conf/link").symlink_to("../data")
    take_snapshot(tmp_path / "code", tmp_path / "unpacked/pkg")
    files = {str(path.relative_to(tmp_path / "code")) for path in (tmp_path / "code").rglob("*")}
    assert files == {"pkg", "pkg/__init__.py", "conf", "conf/a.yaml", "conf/link", "run.py"}


def test_snapshot_is_taken_again_when_a_file_has_changed(tmp_path: Path) -> None:
    package, folder = tmp_path / "checkout/pkg", tmp_path / "sweep"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("1")
    (package / "link").symlink_to("__init__.py")
    assert snapshot_of_now(folder, package) == folder / "code"
    take_snapshot(folder / "code", package)
    (folder / "code/pkg/__pycache__").mkdir()  # a job has imported it
    (folder / "code/pkg/__pycache__/x.pyc").touch()
    (package / "__pycache__").mkdir()
    assert snapshot_of_now(folder, package) == folder / "code"
    (package / "__init__.py").write_text("2")
    assert snapshot_of_now(folder, package) == folder / "code-2"
    take_snapshot(folder / "code-2", package)
    (package / "__init__.py").write_text("1")
    assert snapshot_of_now(folder, package) == folder / "code"
    (folder / "code/pkg/link").unlink()  # somebody has touched it
    assert snapshot_of_now(folder, package) == folder / "code-3"


SQUEUE = """\
12|0|RUNNING|None
12|3|PENDING|Resources
13|N/A|CANCELLED|None
14|N/A|FAILED|NonZeroExitCode
"""


def in_columns(rows: str) -> str:
    """Number, index, state, reason and restarts, if any, as squeue shows them."""
    cells = [[*line.split("|"), "0"][:5] for line in rows.splitlines()]
    widths = slurm.QUEUE_FIELDS.values()
    ordered = [(job, index, state, restarts, reason) for job, index, state, reason, restarts in cells]
    return "".join("".join(map(str.ljust, row, widths)).rstrip() + "\n" for row in ordered)


def _answers(monkeypatch: pytest.MonkeyPatch, **answers: str) -> None:
    slurm.cluster_name.cache_clear()
    if "squeue" in answers:
        answers = {"scontrol": "ClusterName = here\n"} | answers | {"squeue": in_columns(answers["squeue"])}

    def run(command: list[str], stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        known = command[0] in answers
        return subprocess.CompletedProcess(command, 0 if known else 1, answers.get(command[0], ""), "no answer")

    monkeypatch.setattr(slurm, "_run", run)


def test_states_from_queue_and_accounting(monkeypatch: pytest.MonkeyPatch) -> None:
    _answers(monkeypatch, squeue=SQUEUE, sacct="9|CANCELLED by 1000\n10|COMPLETED\n")
    states = slurm.job_states(["12_0", "12_3", "13_7", "9", "10", "99"])
    assert states == {
        "12_0": JobState("RUNNING"),
        "12_3": JobState("PENDING", "Resources"),
        "13_7": JobState("CANCELLED"),
        "9": JobState("CANCELLED"),
        "10": JobState("COMPLETED"),
    }
    _answers(monkeypatch, squeue=SQUEUE)
    assert slurm.job_states(["14", "99"]) == {"14": JobState("FAILED", "NonZeroExitCode")}
    _answers(monkeypatch)
    with pytest.raises(slurm.NoAnswerError):
        slurm.job_states(["12_0"])


def _run_dir(folder: Path, status: str, job_id: str | None = None, **entries: object) -> Path:
    (folder / "logs").mkdir(parents=True)
    rundir.write_run(folder, status=status, world_size=8, overrides=[folder.name], **entries)
    if job_id:
        rundir.write_atomically(folder / "submission.json", f'{{"slurm_job_id": "{job_id}"}}')
    return folder


def test_status_is_made_of_files_and_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _answers(monkeypatch, squeue=SQUEUE + "20|N/A|NODE_FAIL|NodeDown\n")
    runs = [
        _run_dir(tmp_path / "done", "completed", "1"),
        _run_dir(tmp_path / "runs", "running", "12_0"),
        _run_dir(tmp_path / "waits", "queued", "12_3"),
        _run_dir(tmp_path / "node", "running", "20"),
        _run_dir(tmp_path / "lost", "running", "77"),
        _run_dir(tmp_path / "here", "running"),
    ]
    seen = {one.run_dir.name: (one.status, one.state) for one in observe(runs)}
    assert seen == {
        "done": ("completed", "completed"),
        "runs": ("running", "RUNNING"),
        "waits": ("queued", "PENDING"),
        "node": ("failed", "failed"),
        "lost": ("failed", "failed"),
        "here": ("running", "running"),
    }
    assert rundir.read_json(tmp_path / "node/run.json")["error"] == "Slurm lost a node"
    assert "does not know the job any more" in rundir.read_json(tmp_path / "lost/run.json")["error"]


def test_the_end_of_a_job_ends_a_run_that_somebody_else_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _answers(monkeypatch, squeue=SQUEUE + "20|N/A|NODE_FAIL|NodeDown\n")
    inside = {"alive": "12_0", "node": "20", "forgotten": "77", "said": "20", "elsewhere": "20"}
    for name, slurm_job in inside.items():
        cluster = "there" if name == "elsewhere" else "here"
        status = "preempted" if name == "said" else "running"
        _run_dir(tmp_path / name, status, inside={"job": slurm_job, "cluster": cluster}, error=None)
    seen = {one.run_dir.name: (one.status, one.run["error"]) for one in observe([tmp_path / name for name in inside])}
    assert seen == {
        "alive": ("running", None),
        "node": ("failed", "Slurm lost a node"),
        "forgotten": ("failed", "job 77 is over, and the run left no word of its end"),
        "said": ("preempted", None),
        "elsewhere": ("running", None),
    }
    assert rundir.read_json(tmp_path / "node/run.json")["status"] == "failed"


def test_nothing_is_settled_while_slurm_is_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _answers(monkeypatch)
    (one,) = observe([_run_dir(tmp_path / "runs", "running", "12_0")])
    assert (one.status, one.state) == ("running", "running")


def test_status_shows_progress_time_left_and_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _answers(monkeypatch, squeue=SQUEUE)
    runs = [
        _run_dir(tmp_path / "a", "running", "12_0", epochs=90),
        _run_dir(tmp_path / "b", "failed", "5", error="rank 3 failed\nmore"),
    ]
    (runs[1] / "logs" / "slurm.log").touch()
    rundir.write_summary(runs[0], {"epoch": 30, "val_acc1": 61.234, "train_time_s": 3600.0, "eval_time_s": 10.0})
    with (tmp_path / "out.txt").open("w") as out:
        show_status(observe(runs), Console(file=out))
    text = (tmp_path / "out.txt").read_text()
    assert text.startswith(f"runs in {tmp_path}\n")
    assert "30/90" in text
    assert "61.23" in text
    assert "2:10 h" in text
    assert f"{runs[1]}: rank 3 failed; log: {runs[1]}/logs/slurm.log" in text


def test_status_names_what_may_change_the_result(tmp_path: Path) -> None:
    common = ["+experiments=quickstart", "cluster=4xA40"]
    hold = "+cluster.additional_parameters.hold=true"
    of_no_matter = ["cluster.partition=x", hold, "tracking.project=y", "checkpoint.keep_last=5"]
    typed = [
        [*common, "topology=ring", "+cluster.env.A=1"],
        [*common, "topology=exp", *of_no_matter],
        [*common, "topology=exp", "cluster.srun_args=[bold]", "~max_steps"],
        [*common, *of_no_matter],
    ]
    runs = [_run_dir(tmp_path / f"sweep/{number}", "completed") for number in range(4)]
    for run, overrides in zip(runs, typed, strict=True):
        rundir.write_run(run, overrides=overrides)
    with (tmp_path / "out.txt").open("w") as out:
        show_status(observe(runs), Console(file=out))
    shown = [line.split("completed")[0].split() for line in (tmp_path / "out.txt").read_text().splitlines()]
    assert shown[4:8] == [
        ["0", "topology=ring", "+cluster.env.A=1", "-"],
        ["1", "topology=exp", "-"],
        ["2", "topology=exp", "cluster.srun_args=[bold]", "~max_steps", "-"],
        ["3", "-", "-"],
    ]


def test_status_shows_the_newest_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    times = {"z/0": "2026-01-02", "b/10": "2026-01-03", "b/9": "2026-01-01", "a/0": "2026-01-04", "c/0": None}
    for name, start in times.items():
        _run_dir(tmp_path / "multirun_outputs" / name, "completed", start=start)
    rundir.write_atomically(tmp_path / "multirun_outputs/c/0/submission.json", '{"submitted": "2026-01-05"}')
    shown = CliRunner().invoke(app, ["status", "--last", "4"]).stdout.splitlines()
    assert [line.split()[0] for line in shown if "completed" in line] == ["b/9", "b/10", "a/0", "c/0"]
    assert shown[0] == "runs in multirun_outputs"
    assert shown[-1] == "1 older runs are not shown; --last 5 shows all"


def test_durations() -> None:
    assert [duration(seconds) for seconds in (7, 130, 7500)] == ["7 s", "2 min", "2:05 h"]
