"""A run of a sweep is composed as Hydra would compose it: held together node by node, for whatever can be typed."""

import random
from collections.abc import Iterator
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from imgnet.config import parse, register_schemas
from imgnet.config.explain import explain
from imgnet.launch.composition import Composer
from tests.commands import ROOT

MASTER = ["+experiments=quickstart", "topology=ring", "hydra.job.config.override_dirname.kv_sep=:"]
STUDY = "+experiments=quickstart"
CHOICES = [
    "topology=exp",
    "topology=allreduce",
    "'topology'=grid",
    "optimizer=sgd",
    "cluster=8xA40",
    "model=resnet18",
    "data=synthetic",
    "~model",
    "topology='star'",
]
VALUES = [
    "seed=7",
    "name=' a, \"b\" = [c] '",
    r"name='it\'s'",
    "name=${model.name}-${seed}",
    "name=${now:%Y}${oc.env:HOME}",
    "name=x\\=y",
    "seed=${epochs}",
    "label_smoothing=${optimizer.lr}",
    "resume=null",
    "max_steps=null",
    "max_steps=1e2",
    "compile=yes",
    "precision=fp32",
    "skip_completed=true",
    "optimizer.lr=1e-3",
    "optimizer.betas=[0.8,0.99]",
    "optimizer.betas=[0.8,${label_smoothing}]",
    "++optimizer.eps=1e-9",
    "topology.schedule=[{after_epochs: 0, topology: complete},{after_epochs: 5, topology: ring}]",
    "data={train_px: 33, mean: [0.1,0.2,0.3]}",
    "model={name: vit_b_16, pretrained: true}",
    "+cluster.env={A: '1', B: ${name}}",
    "+cluster.additional_parameters.hold=true",
    "+cluster.additional_parameters.hold=later",
    "++cluster.env.X=y",
    "+model.new=3",
    "+new.deep.key=[1,{a: b}]",
    "~max_steps",
    "~seed=1",
    "~seed=2",
    "~tracking",
    "tracking.wandb=offline",
    "checkpoint.every_min=2.5",
    "max_grad_norm=inf",
]


@pytest.fixture(scope="module")
def loader() -> Iterator[ConfigLoader]:
    register_schemas()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield GlobalHydra.instance().config_loader()
    HydraConfig.instance().cfg = None


@pytest.fixture(scope="module")
def master(loader: ConfigLoader) -> DictConfig:
    master = loader.load_configuration("config", MASTER, RunMode.MULTIRUN)
    assert master.hydra.sweep.dir  # asks for the time, which every run has from here
    return master


@pytest.fixture(scope="module")
def composer(loader: ConfigLoader, master: DictConfig) -> Composer:
    return Composer(loader, master)


def _nodes(node: Any) -> Any:
    """All there is to a configuration: values as they are written, types, flags, and what was resolved before."""
    about = vars(node._metadata) | {"kind": type(node)}
    if isinstance(node, DictConfig) and isinstance(node._value(), dict):
        return about, {key: _nodes(node._get_node(key)) for key in node.keys()}  # noqa: SIM118  (missing ones as well)
    if isinstance(node, ListConfig) and isinstance(node._value(), list):
        return about, [_nodes(child) for child in node._value()]
    return about, node._value()


def _answer(compose: Any, overrides: list[str]) -> tuple[Any, str]:
    """A configuration and what becomes of it, or why there is none."""
    try:
        config = compose(overrides)
    except HydraException as error:
        return None, explain(error)
    with open_dict(config):
        config.hydra.job.num = 3
    HydraConfig.instance().cfg = config
    try:
        return _nodes(config), str(parse(config))
    except Exception as error:
        return _nodes(config), f"{type(error)}: {error}"


def _samples(number: int) -> list[list[str]]:
    draw = random.Random(0)
    samples = [
        [STUDY, *draw.sample(CHOICES, draw.randrange(3)), *draw.choices(VALUES, k=draw.randrange(6))]
        for _ in range(number)
    ]
    return [draw.sample(sample, len(sample)) for sample in samples]


SAMPLES = _samples(60)


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize(
    "overrides", [*SAMPLES[:30], *(pytest.param(more, marks=pytest.mark.slow) for more in SAMPLES[30:])], ids=" ".join
)
def test_a_run_is_what_hydra_composes(
    loader: ConfigLoader, master: DictConfig, composer: Composer, overrides: list[str]
) -> None:
    ours = _answer(composer.compose, overrides)
    assert ours == _answer(lambda lines: loader.load_sweep_config(master, lines), overrides)


@pytest.mark.parametrize("override", [*CHOICES, *VALUES, "topology=nope", "a=1,2", "hydra.job.name=x", "hydra={}", "x"])
def test_each_override_alone(loader: ConfigLoader, master: DictConfig, composer: Composer, override: str) -> None:
    ours = _answer(composer.compose, [STUDY, override])
    assert ours == _answer(lambda lines: loader.load_sweep_config(master, lines), [STUDY, override])


def test_a_run_leaves_nothing_to_the_next(composer: Composer) -> None:
    first = composer.compose([STUDY, "seed=1"])
    before = _nodes(first)
    other = composer.compose([STUDY, "seed=2", "optimizer.betas=[0,0]", "+new=1"])
    other.optimizer.betas[0] = 0.5
    OmegaConf.set_readonly(other, True)
    assert _nodes(composer.compose([STUDY, "seed=1"])) == before == _nodes(first)
    assert other.seed == 2
