"""Wrong commands, and the one line that each of them gets. Real processes, as a user types them."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.commands import ROOT, run_py

QUICK = "+experiments=quickstart"
SYNTHETIC = "data=synthetic"

WRONG_COMMANDS: list[tuple[list[str], list[str]]] = [
    (["topolgy=ring"], ["unknown key 'topolgy'; did you mean 'topology'?"]),
    (["topology=rign"], ["topology=rign: there is no such topology; did you mean 'ring'?"]),
    (["cluster=5xA40"], ["cluster=5xA40: there is no such cluster; did you mean '8xA40'?"]),
    (["model=resnet"], ["model=resnet: there is no such model; did you mean 'resnet50'?"]),
    (["+experiments=quickstrt"], ["experiments=quickstrt: there is no such experiments; did you mean 'quickstart'?"]),
    ([QUICK, "epoch=3"], ["unknown key 'epoch'; did you mean 'epochs'?"]),
    ([QUICK, "+epoch=3"], ["unknown key 'epoch'; did you mean 'epochs'?"]),
    ([QUICK, "model.nam=resnet18"], ["unknown key 'model.nam'; in model, did you mean 'name'?"]),
    ([QUICK, "optimizer.betaz=[0.9,0.99]"], ["unknown key 'optimizer.betaz'; in optimizer, did you mean 'betas'?"]),
    (
        [QUICK, "optimizer.momentum=0.9"],
        [
            "unknown key 'optimizer.momentum'; in optimizer, known: betas, eps, lr, min_lr, name, warmup_epochs, "
            "warmup_factor, weight_decay"
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
    ([QUICK, "epochs"], ["cannot read 'epochs'"]),
    ([QUICK, "epochs=0"], ["epochs=0; at least 1 is needed"]),
    ([QUICK, "global_batch_size=63"], ["global_batch_size=63 is not divisible by 4 workers (cluster=local)"]),
    ([QUICK, "global_batch_size=2000"], ["global_batch_size=2000 is more than the 1437 training images"]),
    (
        [QUICK, "num_accumulation_steps=3"],
        ["num_accumulation_steps=3 does not divide the 16 images that each of 4 workers has in a step"],
    ),
    ([QUICK, "label_smoothing=1.5"], ["label_smoothing=1.5 is outside [0, 1)"]),
    ([QUICK, "optimizer.lr=-1"], ["optimizer.lr=-1.0 must be positive"]),
    ([QUICK, "optimizer.warmup_epochs=20"], ["optimizer.warmup_epochs=20.0 leaves nothing of epochs=20"]),
    ([QUICK, "optimizer=sgd", "optimizer.nesterov=true", "optimizer.momentum=0"], ["optimizer.nesterov=true needs"]),
    ([QUICK, "topology=alternating-exp-ring"], ["topology=alternating-exp-ring needs 2 or more nodes"]),
    ([QUICK, "topology.engine=decent_dp", "precision=fp16"], ["topology.engine=decent_dp has no loss scale"]),
    ([QUICK, "topology.engine=decent_dp", "cluster.cpu_workers_per_node=1"], ["decent_dp needs 2 or more workers"]),
    ([QUICK, "cluster.gpus_per_node=2"], ["cluster.gpus_per_node=2 contradicts cluster.accelerator=cpu"]),
    ([QUICK, "cluster.accelerator=auto", "cluster.gpus_per_node=64"], ["this machine offers"]),
    ([QUICK, "cluster.cpu_workers_per_node=0"], ["cluster.cpu_workers_per_node=0; at least 1 is needed"]),
    ([QUICK, "data=imagenet"], ["data.root=data/Imagenet"]),
    ([QUICK, "data.train_px=0"], ["data.train_px=0"]),
    ([QUICK, "data.crop_scale=[0.5]"], ["data.crop_scale=[0.5]"]),
    ([QUICK, "data.num_train=100"], ["data.num_train=100"]),
    ([QUICK, "model.weights=x.safetensors", "model.pretrained=true"], ["model.pretrained=true contradicts model.wei"]),
    ([QUICK, "mode=evaluate"], ["mode=evaluate needs model.weights=<file> or model.pretrained=true"]),
    ([QUICK, "mode=evaluate", "model.weights=gone.safetensors"], ["model.weights=gone.safetensors: there is no such"]),
    ([QUICK, "resume=gone"], ["resume=gone: neither auto, none, nor the folder of a checkpoint or a run"]),
    ([QUICK, "checkpoint.every_min=0"], ["checkpoint.every_min=0.0 must be positive"]),
    ([QUICK, "name=a/b"], ["name='a/b' names a folder"]),
    ([SYNTHETIC, "cluster=4xA40", "global_batch_size=62"], ["global_batch_size=62 is not divisible by 4 workers"]),
    ([SYNTHETIC, "cluster=32xT4", "precision=bf16"], ["precision=bf16: T4 has no bf16 arithmetic; use precision=fp16"]),
    (
        [SYNTHETIC, "cluster=4xA40", "+cluster.env.WANDB_API_KEY=abc"],
        ["cluster.env.WANDB_API_KEY: a secret would be written to the run directory"],
    ),
    (
        [QUICK, "epochs=0", "global_batch_size=63", "optimizer.lr=0"],
        ["epochs=0; at least 1", "global_batch_size=63 is not divisible", "optimizer.lr=0.0 must be positive"],
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
def answers(
    tmp_path_factory: pytest.TempPathFactory, without_torch: str
) -> dict[tuple[str, ...], tuple[int, str, str, Path]]:
    """Every wrong command, carried out where torch cannot be imported; two at a time."""

    def ask(command: list[str]) -> tuple[tuple[str, ...], tuple[int, str, str, Path]]:
        folder = tmp_path_factory.mktemp("user")
        # Not measured for coverage, which would double the time of all these starts.
        done = run_py(*command, cwd=folder, PYTHONPATH=without_torch, COVERAGE_PROCESS_CONFIG="")
        return tuple(command), (done.returncode, done.stdout, done.stderr, folder)

    with ThreadPoolExecutor(2) as pool:
        return dict(pool.map(ask, [command for command, _ in WRONG_COMMANDS]))


@pytest.mark.parametrize(("command", "lines"), WRONG_COMMANDS, ids=[" ".join(command) for command, _ in WRONG_COMMANDS])
def test_a_wrong_command_gets_one_clear_line_for_each_problem(
    command: list[str], lines: list[str], answers: dict[tuple[str, ...], tuple[int, str, str, Path]]
) -> None:
    status, out, shown, folder = answers[tuple(command)]
    said = shown.splitlines()
    assert status == 2
    assert out == ""
    assert len(said) == len(lines), shown
    for line, expected in zip(said, lines, strict=True):
        assert expected in line
    assert list(folder.iterdir()) == [], "nothing may be left behind"


def test_help_shows_the_groups_and_never_imports_torch(tmp_path: Path, without_torch: str) -> None:
    done = run_py("--help", cwd=tmp_path, PYTHONPATH=without_torch)
    assert done.returncode == 0
    assert "topology: allreduce, alternating-exp-ring" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_full_error_is_there_for_who_asks(tmp_path: Path) -> None:
    done = run_py(QUICK, "epochs=0", cwd=tmp_path, HYDRA_FULL_ERROR="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
