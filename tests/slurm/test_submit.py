"""From a command to a job of a real Slurm, and its results."""

import csv
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.slurm.conftest import LIMIT_S, QUICK, User, job_id, run_json, wait_for_end, wait_until

pytestmark = pytest.mark.slurm
PRESETS_OF_FOUR_NODES = ("4xA40", "8xA40", "32xT4", "8xA100", "16xA100")
TIMES = ("train_time_s", "eval_time_s", "images_per_s")


def _metrics(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open() as file:
        return [{key: value for key, value in row.items() if key not in TIMES} for row in csv.DictReader(file)]


def test_job_gives_what_local_workers_give(user: User) -> None:
    start = time.monotonic()
    submitted = user.run_py(*QUICK, "topology=ring", "cluster=4xA40")
    seconds = time.monotonic() - start
    assert submitted.returncode == 0, submitted.stderr
    assert seconds <= 5, f"submitting took {seconds:.1f} s"
    (run_dir,) = user.runs()
    assert f"submitted job {job_id(run_dir)}: 1 run with 1 node of 4 A40" in submitted.stdout
    assert f"imgnet logs {run_dir.relative_to(user.folder)} -f" in submitted.stdout
    local = user.run_py(*QUICK, "topology=ring", "cluster=local", "cluster.cpu_workers_per_node=4")
    assert local.returncode == 0, local.stderr
    wait_for_end(run_dir)
    (other,) = set(user.runs()) - {run_dir}
    assert _metrics(run_dir) == _metrics(other)
    model, same = (load_file(one / "checkpoints/final.safetensors") for one in (run_dir, other))
    assert all(np.array_equal(model[name], same[name]) for name in model.keys() | same.keys())
    job = user.slurm.ask("scontrol", "show", "job", job_id(run_dir))
    assert "NumNodes=1 " in job
    assert "gpu:A40:4" in job
    assert "TimeLimit=08:00:00" in job
    run = run_json(run_dir)
    assert (run["status"], run["world_size"], len(run["hosts"])) == ("completed", 4, 1)
    assert len(list((run_dir / "logs").glob("rank_*.log"))) == 4


def test_a_run_is_repeated_by_hand_from_what_its_directory_says(user: User) -> None:
    two_gpus = ("cluster=4xA40", "cluster.gpus_per_node=2")
    submitted = user.run_py(*QUICK, *two_gpus, "topology=ring", "max_steps=30", "on_sweep_end=imgnet results {sweep}")
    assert submitted.returncode == 0, submitted.stderr
    (run_dir,) = user.runs()
    wait_for_end(run_dir)
    again = ["srun", "-p", "gpu", "-N1", "--ntasks-per-node=2", sys.executable, str(run_dir.parent / "code/run.py")]
    words = [word for word in run_json(run_dir)["overrides"] if not word.startswith("on_sweep_end=")]
    done = subprocess.run([*again, *words], capture_output=True, text=True, timeout=LIMIT_S, **user.how())
    assert done.returncode == 0, done.stderr
    (other,) = set(user.runs()) - {run_dir}
    assert _metrics(run_dir) == _metrics(other)


def test_topology_over_two_nodes(user: User) -> None:
    refused = user.run_py(*QUICK, "topology=alternating-exp-ring", "cluster=4xA40")
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "alternating-exp-ring" in refused.stderr
    assert "2 or more nodes" in refused.stderr
    assert not (user.folder / "multirun_outputs").exists()
    assert not user.slurm.ask("squeue", "-h", "-t", "PENDING,RUNNING")

    waited = user.run_py(*QUICK, "topology=alternating-exp-ring", "cluster=8xA40", "cluster.wait=true")
    assert waited.returncode == 0, waited.stderr
    (run_dir,) = user.runs()
    assert "epoch 3/3" in waited.stdout
    run = run_json(run_dir)
    assert (run["status"], run["world_size"], len(run["hosts"])) == ("completed", 8, 2)
    assert f"imgnet status {run_dir.parent.relative_to(user.folder)}" in waited.stdout


def test_sweep_is_two_arrays_and_is_made_once(user: User) -> None:
    sweep = (*QUICK, "topology=ring,exp", "cluster=4xA40,8xA40", "cluster.array_parallelism=4")
    sweep = (*sweep, "max_steps=30")
    submitted = user.run_py(*sweep)
    assert submitted.returncode == 0, submitted.stderr
    run_dirs = user.runs()
    assert len(run_dirs) == 4
    arrays = {job_id(run_dir).split("_")[0] for run_dir in run_dirs}
    assert len(arrays) == 2
    jobs = {run_dir: user.slurm.ask("scontrol", "show", "job", job_id(run_dir)) for run_dir in run_dirs}
    for run_dir, job in jobs.items():
        nodes, limit = (1, "08:00:00") if run_json(run_dir)["world_size"] == 4 else (2, "06:00:00")
        assert re.search(rf"NumNodes={nodes}\b", job), job
        assert f"TimeLimit={limit}" in job
        assert "gpu:A40:4" in job
        assert "ArrayTaskThrottle=4" in job
    assert sum("NumNodes=1 " in job or "NumNodes=1-1 " in job for job in jobs.values()) == 2
    again = user.run_py(*sweep)
    assert again.stdout.count("skipped, on its way") + again.stdout.count("skipped, completed before") == 4
    wait_for_end(*run_dirs)
    assert {run_json(run_dir)["status"] for run_dir in run_dirs} == {"completed"}

    again = user.run_py(*sweep)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("skipped, completed before") == 4
    assert "submitted" not in again.stdout
    assert len(user.runs()) == 4

    (run_dirs[3] / "run.json").unlink()
    again = user.run_py(*sweep, "+cluster.additional_parameters.hold=true")
    assert again.stdout.count("skipped, completed before") == 3, again.stdout
    assert again.stdout.count("submitted job") == 1
    (new,) = set(user.runs()) - set(run_dirs)
    assert job_id(new).isdigit()


def test_edit_after_submission_changes_no_queued_job(developer: User) -> None:
    held = developer.run_py(*QUICK, "cluster=4xA40", "max_steps=30", "+cluster.additional_parameters.hold=true")
    assert held.returncode == 0, held.stderr
    (run_dir,) = developer.runs()
    developer.edit("imgnet/train.py", "import time\n", "raise RuntimeError('edited')\n")
    developer.edit("conf/config.yaml", "seed: 1\n", "seed: 2\n")
    (developer.folder / "imgnet").symlink_to(developer.code / "imgnet")  # nor one in the working directory
    developer.slurm.ask("scontrol", "release", job_id(run_dir))
    wait_for_end(run_dir)
    assert run_json(run_dir)["status"] == "completed", run_json(run_dir)["error"]
    assert "as it was submitted" not in (run_dir / "logs/slurm.log").read_text()


def test_job_whose_directory_is_gone_does_not_run_elsewhere(user: User, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    held = user.run_py(*QUICK, "cluster=4xA40", f"hydra.sweep.dir={runs}", "+cluster.additional_parameters.hold=true")
    assert held.returncode == 0, held.stderr
    shutil.rmtree(user.folder)
    user.slurm.ask("scontrol", "release", job_id(runs / "0"))
    wait_until(lambda: not user.slurm.ask("squeue", "-h"), "the job is over")
    assert "No such file or directory" in (runs / "0/logs/slurm.log").read_text()
    assert run_json(runs / "0")["status"] != "completed"


def test_controller_that_hangs_reads_as_what_it_is(user: User) -> None:
    controller = user.slurm.daemons["slurmctld"]
    controller.send_signal(signal.SIGSTOP)
    try:
        refused = user.run_py(*QUICK, "cluster=4xA40")
    finally:
        controller.send_signal(signal.SIGCONT)
    assert refused.returncode == 2
    assert re.match(r"cluster=4xA40: Slurm did not answer sbatch in \d+ s", refused.stderr), refused.stderr
    assert refused.stderr.count("\n") == 1
    assert not (user.folder / "multirun_outputs").exists()


def test_hundred_runs_are_submitted_without_torch(user: User) -> None:
    hold = "+cluster.additional_parameters.hold=true"
    start = time.monotonic()
    submitted = user.run_py(*QUICK, "seed=range(1,101)", "cluster=4xA40", hold, PYTHONPROFILEIMPORTTIME="1")
    seconds = time.monotonic() - start
    assert submitted.returncode == 0, submitted.stderr[-2000:]
    print(f"100 runs submitted in {seconds:.1f} s")
    imported = {
        line.rpartition("|")[2].strip() for line in submitted.stderr.splitlines() if line.startswith("import time")
    }
    assert "hydra" in imported
    assert not {name for name in imported if name.partition(".")[0] in ("torch", "torchvision")}
    assert len(user.runs()) == 100
    status = user.imgnet("status", "--last", "100")
    assert status.stdout.count("PENDING (JobHeldUser)") == 100, status.stdout[:2000]
    cancelled = user.imgnet("cancel", str(user.runs()[0].parent))
    assert cancelled.stdout.count("cancelled: ") == 100, cancelled.stderr
    wait_until(lambda: not user.slurm.ask("squeue", "-h"), "the queue is empty")
    status = user.imgnet("status", "--last", "1")
    assert "cancelled with imgnet cancel" in status.stdout


@pytest.mark.parametrize("preset", PRESETS_OF_FOUR_NODES)
def test_presets_fit_a_cluster_that_has_their_nodes(user: User, preset: str) -> None:
    dry = user.run_py(*QUICK, f"cluster={preset}", "cluster.dry_run=true", "precision=fp16")
    script, _, composed = dry.stdout.partition("# configuration of run 0")
    assert f"name: {preset}\n" in composed
    assert not (user.folder / "multirun_outputs").exists()
    done = subprocess.run(
        ["sbatch", "--test-only"],
        input=script.split("\n", 1)[1],
        env=user.slurm.environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_refused_in_slurms_words_and_one_line(user: User) -> None:
    expected = {
        "cluster=4xA40 cluster.partition=nowhere": "invalid partition specified: nowhere",
        "cluster=4xA40 cluster.timeout_min=0": "cluster.timeout_min=0 must be at least 1",
        "cluster=4xA40 cluster.gpus_per_node=8": "asked for 1 nodes with gpu:A40:8; it has 4 nodes with gpu:A40:4",
        "cluster=4xA40 cluster.partition=accounted": "You have to specify an account in partition accounted",
        "cluster=64xT4": "Requested node configuration is not available",
        "cluster=4xA40 cluster.constraint=big": "Invalid feature specification",
        "cluster=4xA40 +cluster.additional_parameters.bold=true": "unrecognized option '--bold'",
        'cluster=4xA40 cluster.srun_args=["--bold=1"]': "srun refuses cluster.srun_args=[--bold=1]: unrecognized opti",
    }
    for arguments, words in expected.items():
        refused = user.run_py(*QUICK, *arguments.split())
        assert refused.returncode == 2, arguments
        assert words in refused.stderr
        assert refused.stderr.count("\n") == 1, refused.stderr
    no_slurm = user.run_py(*QUICK, "cluster=4xA40", PATH="/nowhere")
    assert no_slurm.returncode == 2
    assert no_slurm.stderr.startswith("cluster=4xA40: there is no sbatch on the path")
    assert no_slurm.stderr.count("\n") == 1
    assert not (user.folder / "multirun_outputs").exists()
