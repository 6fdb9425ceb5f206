"""Every file in ``conf/`` and ``experiments/`` composes, is accepted, and builds its model and its optimizer."""

import pytest
import torch

from imgnet.config import (
    AccumAdamConfig,
    ConfigError,
    Decay,
    Precision,
    SlurmConfig,
)
from imgnet.launch.checks import check
from imgnet.models.build import build_model
from imgnet.optim.factory import build_optimizer
from imgnet.plan.compose import composed_runs
from tests.commands import ROOT
from tests.composing import composed

CONF = ROOT / "conf"
GROUPS = ("model", "data", "topology", "optimizer", "cluster")
OPTIONS = [(group, file.stem) for group in GROUPS for file in sorted((CONF / group).glob("*.yaml"))]
STUDIES = [
    str(file.relative_to(ROOT / "experiments").with_suffix("")) for file in (ROOT / "experiments").rglob("*.yaml")
]
ON_FOLDERS = {"paper": [], "imagenet_resnet50/study": [], "digits_methods/study": ["data.num_classes=1000"]}
"""Studies whose images are not made by the run, and what a folder of another number of classes takes."""
NEEDED = {
    "model=vit_b_16": ["data.train_px=224"],
    "topology": ["cluster=8xA40"],
    "topology=custom": ["topology.rounds=[[{ranks: [0,1,2,3,4,5,6,7]}]]"],
}
"""What a group, or one of its options, needs beside the defaults."""


@pytest.fixture(scope="module")
def imagenet_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folders of ImageNet, with two empty files in each."""
    root = tmp_path_factory.mktemp("Imagenet")
    for split in ("train", "val"):
        for number in range(1000):
            folder = root / split / f"n{number:08}"
            folder.mkdir(parents=True)
            for name in ("1.JPEG", "2.JPEG"):
                (folder / name).touch()
    return str(root)


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_and_is_accepted(group: str, option: str, imagenet_folder: str) -> None:
    data = [] if (group, option) in (("data", "digits"), ("data", "synthetic")) else [f"data.root={imagenet_folder}"]
    config = composed(f"{group}={option}", *data, *NEEDED.get(group, []), *NEEDED.get(f"{group}={option}", []))
    assert getattr(config, group).name == option
    if option.startswith("directed-"):
        with pytest.raises(ConfigError, match=f"^topology={option} is directed, .* it needs averaging=push_sum$"):
            check(config)
        config = composed(f"{group}={option}", "averaging=push_sum", *data, *NEEDED["topology"])
    assert check(config).world_size >= 1


@pytest.mark.parametrize("study", STUDIES)
def test_every_study_composes_and_is_accepted(study: str, imagenet_folder: str) -> None:
    data = [f"data.root={imagenet_folder}", *ON_FOLDERS[study]] if study in ON_FOLDERS else []
    check(composed(f"+experiments={study}", *data))


@pytest.mark.slow
def test_every_command_of_the_study_on_imagenet_is_accepted(imagenet_folder: str) -> None:
    text = (ROOT / "experiments" / "imagenet_resnet50" / "README.md").read_text()
    commands = [line.split()[2:] for line in text.splitlines() if line.startswith("python run.py")]
    num_runs = {}
    for words in commands:
        runs = composed_runs([*words, f"data.root={imagenet_folder}"])
        check(runs[0])
        check(runs[-1])
        cluster = words[-1].removeprefix("cluster=")
        num_runs[cluster] = num_runs.get(cluster, 0) + len(runs)
    assert num_runs == {"4xA40": 24, "8xA40": 30, "32xT4": 30}
    assert f"| runs | {' | '.join(map(str, num_runs.values()))} |" in text


@pytest.mark.parametrize("cluster", [file.stem for file in (CONF / "cluster").glob("*x*.yaml")])
def test_the_papers_recipe_goes_with_every_cluster(cluster: str, imagenet_folder: str) -> None:
    words = ["+experiments=paper", f"cluster={cluster}", f"data.root={imagenet_folder}"]
    one_node = cluster.startswith("4x")
    decentralized = ["topology=ring" if one_node else "topology=alternating-exp-ring", "optimizer=accum_adam"]
    for more in ([], decentralized):
        config = composed(*words, *more)
        check(config)
        assert (config.precision, config.evaluate_precision) == (Precision.fp16, Precision.fp32)
        assert (config.optimizer.decay, config.optimizer.weight_decay) == (Decay.by_name, 2**-15)
        assert (config.data.antialias, config.data.crop_attempts) == (False, 100)
    assert isinstance(config.optimizer, AccumAdamConfig)
    assert (config.optimizer.lr, config.optimizer.accum_iter) == (1.5e-3, 8)


@pytest.mark.parametrize("model", [option for group, option in OPTIONS if group == "model"])
@pytest.mark.parametrize("optimizer", ["sgd", "accum_adamw"])
def test_every_model_is_built_with_its_optimizer(model: str, optimizer: str, imagenet_folder: str) -> None:
    config = composed(f"model={model}", f"optimizer={optimizer}", f"data.root={imagenet_folder}")
    with torch.device("meta"):
        module = build_model(config.model, 1000, device=torch.device("meta"), channels_last=True)
    module.to_empty(device="cpu")
    made = build_optimizer(module.named_parameters(), config.optimizer)
    assert sum(len(group["params"]) for group in made.param_groups) == len(list(module.parameters()))
    undecayed = [p for group in made.param_groups if group["weight_decay"] == 0 for p in group["params"]]
    assert undecayed
    assert all(parameter.ndim <= 1 for parameter in undecayed)


@pytest.mark.parametrize("optimizer", [option for group, option in OPTIONS if group == "optimizer"])
def test_every_optimizer_steps(optimizer: str, imagenet_folder: str) -> None:
    config = composed(f"optimizer={optimizer}", "model=small_cnn", f"data.root={imagenet_folder}")
    module = build_model(config.model, 10, device=torch.device("cpu"), channels_last=True)
    made = build_optimizer(module.named_parameters(), config.optimizer)
    before = [parameter.detach().clone() for parameter in module.parameters()]
    module(torch.ones(2, 3, 32, 32)).sum().backward()
    made.step()
    assert any(not torch.equal(old, new) for old, new in zip(before, module.parameters(), strict=True))


def test_the_default_is_the_published_recipe(imagenet_folder: str) -> None:
    config = composed(f"data.root={imagenet_folder}")
    assert (config.epochs, config.global_batch_size, config.label_smoothing) == (90, 1024, 0.1)
    assert (config.data.train_px, config.data.eval_resize_px, config.data.eval_px) == (176, 256, 224)
    optimizer = config.optimizer
    assert (optimizer.lr, optimizer.weight_decay, optimizer.warmup_epochs) == (1.0, 2**-15, 5)
    assert (optimizer.warmup_factor, optimizer.min_lr) == (0.01, 1e-5)


def test_slurm_presets_have_their_shape(imagenet_folder: str) -> None:
    shapes = {}
    for option in (option for group, option in OPTIONS if group == "cluster" and option not in ("local", "simulated")):
        cluster = composed(f"cluster={option}", f"data.root={imagenet_folder}").cluster
        assert isinstance(cluster, SlurmConfig)
        shapes[option] = f"{cluster.nodes * cluster.gpus_per_node}x{cluster.gpu_type}"
    assert all(name == shape for name, shape in shapes.items())
