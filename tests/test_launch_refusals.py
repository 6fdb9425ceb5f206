"""Wrong commands, and the one line that each of them gets."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import IMGNET, ROOT, environment, run_py
from tests.typist import Typist

QUICK = "+experiments=quickstart"
SYNTHETIC = "data=synthetic"

TOPOLOGIES = ", ".join(sorted(file.stem for file in (ROOT / "conf" / "topology").iterdir()))

WRONG_COMMANDS: list[tuple[list[str], list[str]]] = [
    (["topolgy=ring"], ["unknown key 'topolgy'; did you mean 'topology'?"]),
    (["topology=rign"], ["topology=rign: there is no such topology; did you mean 'ring'?"]),
    (["cluster=5xA40"], ["cluster=5xA40: there is no such cluster; did you mean '8xA40'?"]),
    (["model=resnet"], ["model=resnet: there is no such model; did you mean 'resnet50'?"]),
    (["topology=zzzzz"], [f"topology=zzzzz: there is no such topology; known: {TOPOLOGIES}"]),
    (["topology=exxp"], [f"topology=exxp: there is no such topology; did you mean 'exp'? known: {TOPOLOGIES}"]),
    (
        [QUICK, "on_sweep_end=imgnt results {sweep}"],
        ["on_sweep_end='imgnt results {sweep}': there is no command 'imgnt' on the path"],
    ),
    ([QUICK, 'on_sweep_end=imgnet "results'], ["on_sweep_end='imgnet \"results': No closing quotation"]),
    ([QUICK, "fail_fast=true,false"], ["fail_fast=True,False: must be the same for all runs of a command"]),
    (
        [QUICK, "fail_fast=true", "cluster=local,4xA40"],
        ["fail_fast: some runs are for Slurm and some are not; sweep over them in two commands"],
    ),
    (
        [QUICK, "fail_fast=true", "hydra/launcher=submitit_local"],
        ["fail_fast: hydra/launcher=submitit_local knows of no other run of a sweep; leave it out"],
    ),
    ([QUICK, "cluster=4xA40", "cluster.runs_per_job=0"], ["cluster.runs_per_job=0 must be at least 1"]),
    (["topology="], [f"topology=: there is no such topology; known: {TOPOLOGIES}"]),
    (
        ["cluster=zzzzz"],
        ["cluster=zzzzz: there is no such cluster; known: 16xA100, 32xT4, 4xA40, 64xT4, 8xA100, 8xA40"],
    ),
    (
        [QUICK, "cluster=simulated", "cluster.num_workers=12", "cluster.workers_per_node=5", "global_batch_size=60"],
        ["cluster.workers_per_node=5 does not divide the 12 workers of cluster=simulated"],
    ),
    (
        [QUICK, "cluster=simulated", "cluster.num_workers=128"],
        [
            "global_batch_size=64 has fewer images than there are workers, 128 (cluster=simulated); write "
            "global_batch_size=128 or a multiple of it"
        ],
    ),
    (
        [QUICK, "cluster=simulated", "topology=allreduce", "topology.compression=bf16"],
        ["topology.compression=bf16 is of torch's hooks between processes; cluster=simulated has none"],
    ),
    (
        [QUICK, "cluster=simulated", "precision=fp16", "topology.engine=decent_dp"],
        [
            "precision=fp16: simulated workers take turns, and cannot agree on a loss scale; use bf16 or fp32",
            "topology.engine=decent_dp knows processes only (cluster=simulated); use topology.engine=imgnet",
            "topology.engine=decent_dp has no loss scale that all workers agree on (precision=fp16); "
            "use topology.engine=imgnet",
        ],
    ),
    (
        ["model=zzzzz"],
        ["model=zzzzz: there is no such model; known: resnet18, resnet50, small_cnn, vgg16_bn"],
    ),
    (["data=zzzzz"], ["data=zzzzz: there is no such data; known: digits, imagenet, synthetic"]),
    (
        ["optimizer=zzzzz"],
        ["there is no such optimizer; known: accum_adam, accum_adamw, adam, adamw, sgd"],
    ),
    (
        ["hydra/launcher=nonsense"],
        [
            "hydra/launcher=nonsense: there is no such hydra/launcher; "
            "known: basic, imgnet, submitit_local, submitit_slurm"
        ],
    ),
    (
        [SYNTHETIC, "cluster=4xA40,local", "hydra/launcher=basic"],
        ["cluster=4xA40: hydra/launcher=basic submits nothing to Slurm; leave it out, or choose cluster=local"],
    ),
    ([QUICK, "epochs=0", "hydra/launcher=basic"], ["epochs=0 must be at least 1"]),
    (
        [QUICK, "hydra/launcher=submitit_slurm", "hydra.launcher.nodes=3"],
        ["global_batch_size=64 is not divisible by 3 workers"],
    ),
    (
        [QUICK, "hydra/launcher=submitit_local", "hydra.launcher.tasks_per_node=2"],
        ["hydra.launcher.tasks_per_node=2: on this machine a run starts its own workers; leave it out"],
    ),
    (["hydra/sweeper=nonsense"], ["hydra/sweeper=nonsense: there is no such hydra/sweeper; known: basic, imgnet"]),
    (["hydra/laucher=basic"], ["there is no group 'hydra/laucher'; did you mean 'hydra/launcher'?"]),
    (
        ["+experiments=zzzzz"],
        [
            "there is no such experiment; known: digits_methods/study, digits_topologies/study, "
            "imagenet_resnet50/study, paper, quickstart"
        ],
    ),
    (
        ["+experiments=quickstrt"],
        ["there is no such experiment; did you mean 'quickstart'? known:"],
    ),
    (["+experiments=digits_topologies/zzz"], ["there is no such experiment; did you mean 'digits_topologies/study'?"]),
    (["experiments=quickstart"], ["experiments=quickstart: no run has one by itself; write +experiments=quickstart"]),
    (["+topology=ring"], ["topology is chosen twice; choose it once, without a +"]),
    ([QUICK, "+experiments=digits_topologies/study"], ["experiments is chosen twice; choose it once"]),
    (["cluster=4"], ["cluster=4: an option is a word; one that reads as a number needs quotes, as in cluster=\\'4\\'"]),
    (["--config-name=nope"], ["Cannot find primary config 'nope'"]),
    ([QUICK, "hydra.sweep.dirr=1"], ["unknown key 'hydra.sweep.dirr'; in hydra.sweep, did you mean 'dir'?"]),
    ([QUICK, "hydra.sweep.zzzzz=1"], ["unknown key 'hydra.sweep.zzzzz'; in hydra.sweep, known: dir, subdir"]),
    (
        [QUICK, "+hydra.launcher.partition=gpu"],
        ["hydra.launcher.partition: cluster.partition says it"],
    ),
    (
        [SYNTHETIC, "cluster=4xA40", "cluster.srun_args=[nan]"],
        ["cluster.srun_args[0]='nan': must be an option with its value, such as --mpi=none"],
    ),
    (
        [SYNTHETIC, "cluster=4xA40", "+cluster.additional_parameters.nice=nan"],
        ["cluster.additional_parameters.nice=nan must be finite"],
    ),
    (
        [SYNTHETIC, "cluster=4xA40", "cluster.additional_parameters.hold=true"],
        ["cluster.additional_parameters.hold: there is no such entry yet; a + before the word makes it"],
    ),
    (
        [QUICK, "hydra.launcher.partition=gpu"],
        ["unknown key 'hydra.launcher.partition'; cluster.<key> says how a"],
    ),
    ([QUICK, "seed=range(3,3)"], ["seed=range(3,3): names nothing, so there is no run to make"]),
    ([QUICK, "topology=glob(zz*)"], ["topology=glob(zz*): names nothing, so there is no run to make"]),
    ([QUICK, "+model.zzz=2"], ["unknown key 'model.zzz'; in model, known: name, pretrained, weights"]),
    ([QUICK, "epoch=3"], ["unknown key 'epoch'; did you mean 'epochs'?"]),
    ([QUICK, "+epoch=3"], ["unknown key 'epoch'; did you mean 'epochs'?"]),
    ([QUICK, "model.nam=resnet18"], ["unknown key 'model.nam'; in model, did you mean 'name'?"]),
    ([QUICK, "optimizer.betaz=[0.9,0.99]"], ["unknown key 'optimizer.betaz'; in optimizer, did you mean 'betas'?"]),
    (
        [QUICK, "optimizer.momentum=0.9"],
        [
            "unknown key 'optimizer.momentum'; in optimizer, known: betas, decay, eps, lr, min_lr, name, "
            "warmup_epochs, warmup_factor, weight_decay"
        ],
    ),
    ([QUICK, "topology=allreduce", "topology.engine=imgnet"], ["unknown key 'topology.engine'; in topology, known: "]),
    ([QUICK, "epochs=ten"], ["epochs=ten: must be a whole number"]),
    ([QUICK, "epochs=2.5"], ["epochs=2.5: must be a whole number"]),
    ([QUICK, "optimizer.lr=fast"], ["optimizer.lr=fast: must be a number"]),
    ([QUICK, "compile=maybe"], ["compile=maybe: must be true or false"]),
    ([QUICK, "precision=fp8"], ["precision=fp8: no such choice; known: bf16, fp16, fp32"]),
    ([QUICK, "topology.engine=decentdp"], ["topology.engine=decentdp: no such choice; did you mean 'decent_dp'?"]),
    ([QUICK, "optimizer.betas=0.9"], ["optimizer.betas must be a list, such as optimizer.betas=[1,2]"]),
    ([QUICK, "epochs="], ["epochs=: must be a whole number"]),
    ([QUICK, "epochs=???"], ["epochs has no value; set it with epochs=..."]),
    ([QUICK, "optimizer.lr=???"], ["optimizer.lr has no value; set it with optimizer.lr=..."]),
    ([QUICK, "epochs"], ["cannot read 'epochs'"]),
    ([QUICK, "epochs=0"], ["epochs=0 must be at least 1"]),
    ([QUICK, "global_batch_size=63"], ["global_batch_size=63 is not divisible by 4 workers (cluster=local)"]),
    ([QUICK, "global_batch_size=2000"], ["global_batch_size=2000 is more than the 1437 training images"]),
    (
        [QUICK, "num_accumulation_steps=3"],
        ["num_accumulation_steps=3 does not divide the 16 images that each of 4 workers has in a step"],
    ),
    ([QUICK, "label_smoothing=1.5"], ["label_smoothing=1.5 must be below 1"]),
    ([QUICK, "optimizer.lr=-1"], ["optimizer.lr=-1.0 must be above 0"]),
    ([QUICK, "optimizer.warmup_epochs=20"], ["optimizer.warmup_epochs=20.0 leaves nothing of epochs=20"]),
    ([QUICK, "optimizer=sgd", "optimizer.nesterov=true", "optimizer.momentum=0"], ["optimizer.nesterov=true needs"]),
    ([QUICK, "topology=alternating-exp-ring"], ["topology=alternating-exp-ring needs 2 or more nodes"]),
    ([QUICK, "topology.engine=decent_dp", "precision=fp16"], ["topology.engine=decent_dp has no loss scale"]),
    ([QUICK, "topology.engine=decent_dp", "cluster.cpu_workers_per_node=1"], ["decent_dp needs 2 or more workers"]),
    ([QUICK, "cluster.gpus_per_node=2"], ["cluster.gpus_per_node=2 contradicts cluster.accelerator=cpu"]),
    ([QUICK, "cluster.accelerator=auto", "cluster.gpus_per_node=64"], ["this machine offers"]),
    ([QUICK, "cluster.cpu_workers_per_node=0"], ["cluster.cpu_workers_per_node=0 must be at least 1"]),
    ([QUICK, "data=imagenet"], ["data.root=data/Imagenet"]),
    ([QUICK, "data.train_px=0"], ["data.train_px=0 must be at least 1"]),
    ([QUICK, "data.crop_scale=[0.5]"], ["data.crop_scale=[0.5] must be a list of 2; it has 1"]),
    ([QUICK, "data.num_train=100"], ["data.num_train=100"]),
    ([QUICK, "model.weights=x.safetensors", "model.pretrained=true"], ["model.pretrained=true contradicts model.wei"]),
    ([QUICK, "mode=evaluate"], ["mode=evaluate needs model.weights=<file> or model.pretrained=true"]),
    ([QUICK, "mode=evaluate", "model.weights=gone.safetensors"], ["model.weights=gone.safetensors: No such file"]),
    ([QUICK, "resume=gone"], ["resume=gone: neither auto, none, nor the folder of a checkpoint or a run"]),
    ([QUICK, "checkpoint.every_min=0"], ["checkpoint.every_min=0.0 must be above 0, or null"]),
    ([QUICK, "name=a/b"], ["name='a/b' names a folder"]),
    ([QUICK, f"name={'n' * 201}"], ["name=nnnnnnnnnnnnnnnnnnnn... names a folder, and has more than 200 bytes"]),
    ([QUICK, f"data.root={'r' * 300}"], [f"data.root={'r' * 300}: File name too long"]),
    ([QUICK, f"resume={'r' * 300}"], [f"resume={'r' * 300}: File name too long"]),
    ([QUICK, "optimizer.lr=nan"], ["optimizer.lr=nan must be finite and above 0"]),
    ([QUICK, "optimizer.lr=inf"], ["optimizer.lr=inf must be finite and above 0"]),
    ([QUICK, f"optimizer.lr={10**400}"], ["optimizer.lr=10000000... has more digits than any number may have"]),
    ([QUICK, "optimizer.weight_decay=nan"], ["optimizer.weight_decay=nan must be finite and at least 0"]),
    ([QUICK, "max_grad_norm=nan"], ["max_grad_norm=nan must be finite and above 0, or null"]),
    ([QUICK, "checkpoint.every_min=nan"], ["checkpoint.every_min=nan must be finite and above 0, or null"]),
    ([QUICK, "model.name=resnet51"], ["model.name=resnet51: neither torchvision nor timm has it; did you mean 'resne"]),
    ([QUICK, "optimizer.name=adm"], ["optimizer.name=adm: there is no such optimizer; did you mean 'adam'?"]),
    (
        [QUICK, "topology.name=exp"],
        ["topology.name=exp stands among settings that are not its own; choose topology=exp"],
    ),
    ([QUICK, "cluster.cpu_workers_per_node=5000"], ["cluster.cpu_workers_per_node=5000 must be at most 1024"]),
    ([QUICK, "seed=9223372036854775808"], ["seed=9223372036854775808 must be below 9223372036854775808"]),
    ([QUICK, "data.mean=[0.5,nan,0.5]"], ["data.mean[1]=nan must be finite and at least 0 and at most 1"]),
    ([QUICK, "tracking.wandb=offline", "tracking.project=a/b"], ["tracking.project=a/b must have 1 to 128 letters"]),
    (
        [SYNTHETIC, "model=vit_b_16"],
        ["data.train_px=176: model.name=vit_b_16 takes images of 224 pixels only; set data."],
    ),
    (
        [QUICK, "topology=custom", "topology.rounds=[[[0,1,nan]]]"],
        ["topology.rounds[0][0][2]=nan must be finite"],
    ),
    ([SYNTHETIC, "cluster=4xA40", "optimizer.lr=nan"], ["optimizer.lr=nan must be finite and above 0"]),
    ([SYNTHETIC, "cluster=4xA40", "model.name=resnet51"], ["model.name=resnet51: neither torchvision nor timm has it"]),
    ([QUICK, "epochs=null"], ["epochs=null: a value is needed"]),
    ([QUICK, "precision=1.5"], ["precision=1.5: no such choice; known: bf16, fp16, fp32"]),
    ([QUICK, "name=[1,2]"], ["name=[1, 2]: must be text"]),
    ([QUICK, "epochs=${nope}"], ["epochs: there is no key 'nope' to take its value from"]),
    ([SYNTHETIC, "cluster=4xA40", "global_batch_size=62"], ["global_batch_size=62 is not divisible by 4 workers"]),
    ([SYNTHETIC, "cluster=32xT4", "precision=bf16"], ["precision=bf16: T4 has no bf16 arithmetic; use precision=fp16"]),
    (
        [SYNTHETIC, "cluster=4xA40", "+cluster.env.WANDB_API_KEY=abc"],
        ["cluster.env.WANDB_API_KEY: a secret would be written to the run directory"],
    ),
    (
        [QUICK, "epochs=0", "global_batch_size=63", "optimizer.lr=0"],
        ["epochs=0 must be at least 1", "optimizer.lr=0.0 must be above 0", "global_batch_size=63 is not divisible"],
    ),
    (
        ["-m", QUICK, "topology=ring,exp", "global_batch_size=64,62"],
        [
            "global_batch_size=62 is not divisible by 4 workers (cluster=local) "
            "[2 of 4 runs, the first: +experiments=quickstart topology=ring global_batch_size=62]"
        ],
    ),
    (["-m", QUICK, "topology=ring,expp"], ["topology=expp: there is no such topology; did you mean 'exp'?"]),
]


@pytest.fixture(scope="module")
def without_torch(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A search path on which ``import torch`` fails: who does not wait for torch does not notice."""
    folder = tmp_path_factory.mktemp("without_torch")
    (folder / "torch.py").write_text("raise ImportError('torch was imported')\n")
    return os.pathsep.join([str(folder), str(ROOT)])


@pytest.fixture(scope="module")
def typist(without_torch: str) -> Iterator[Typist]:
    """Carries out commands where torch cannot be imported."""
    typist = Typist(PYTHONPATH=without_torch)
    yield typist
    typist.close()


@pytest.mark.parametrize(("command", "lines"), WRONG_COMMANDS, ids=[" ".join(command) for command, _ in WRONG_COMMANDS])
def test_a_wrong_command_gets_one_clear_line_for_each_problem(
    command: list[str], lines: list[str], typist: Typist, tmp_path: Path
) -> None:
    answer = typist.type(*command, cwd=tmp_path)
    said = answer.err.splitlines()
    assert answer.status == 2
    assert answer.out == ""
    assert len(said) == len(lines), answer.err
    for line, expected in zip(said, lines, strict=True):
        assert expected in line
        assert str(ROOT) not in line
    assert list(tmp_path.iterdir()) == [], "nothing may be left behind"


ODD_FOLDERS = {
    "back\\slash": "must be without a backslash, which Slurm reads in its own way",
    "two\nlines": "must be one line",
    "co:lon": "no job imports its code from a path with ':'",
    "of job %j": "submitit replaces '%j' in it",
}


@pytest.mark.parametrize(("name", "why"), ODD_FOLDERS.items(), ids=["backslash", "newline", "colon", "tag"])
def test_a_folder_that_a_job_would_not_find_is_refused(name: str, why: str, tmp_path: Path, typist: Typist) -> None:
    (folder := tmp_path / name).mkdir()
    refused = typist.type(SYNTHETIC, "cluster=4xA40", "cluster.dry_run=true", cwd=folder)
    assert refused.status == 2
    assert why in refused.err
    assert refused.err.count("\n") == 1
    assert refused.out == ""


def test_a_folder_that_is_gone_is_refused(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    for command in (f"'{sys.executable}' '{ROOT}/run.py'", f"'{sys.executable}' -c '{IMGNET}' status"):
        gone.mkdir()
        typed = f"rmdir '{gone}' && {command}"
        refused = subprocess.run(
            ["sh", "-c", typed], cwd=gone, env=environment(), capture_output=True, text=True, check=False
        )
        assert refused.returncode == 2
        assert refused.stderr == "the working directory is gone; go to one that exists, and type the command again\n"


@pytest.mark.parametrize("how", [["hydra/launcher=basic", "hydra/sweeper=basic"], ["hydra.mode=RUN"]], ids=" ".join)
def test_nothing_but_our_launcher_takes_a_job_of_slurm(how: list[str], typist: Typist, tmp_path: Path) -> None:
    answer = typist.type(SYNTHETIC, "cluster=4xA40", *how, cwd=tmp_path)
    assert answer.status == 2
    assert "cluster=4xA40: hydra.mode=RUN, or another hydra/launcher, submits nothing to Slurm" in answer.err


def test_help_shows_the_groups_and_never_imports_torch(tmp_path: Path, without_torch: str) -> None:
    done = run_py("--help", cwd=tmp_path, PYTHONPATH=without_torch)
    assert done.returncode == 0
    assert "topology: allreduce, alternating-exp-ring" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_full_error_is_there_for_who_asks(tmp_path: Path) -> None:
    done = run_py(QUICK, "epochs=0", cwd=tmp_path, HYDRA_FULL_ERROR="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_nothing_is_said_where_nobody_reads(tmp_path: Path) -> None:
    """``python run.py ... | true``: many lines, and a reader that has gone."""
    shown = "+experiments=quickstart cluster=4xA40 cluster.dry_run=true 'seed=range(1,9)'"
    run = f"'{sys.executable}' '{ROOT}/run.py' {shown} 2>&3; echo \"ended with $?\" >&3"
    line = ["bash", "-c", f"exec 3>&1; {{ {run}; }} | true"]
    done = subprocess.run(line, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert done.stdout == "ended with 141\n", done.stdout
