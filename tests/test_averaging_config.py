"""Ways to average in the configuration: each composes, reaches its method, and what is wrong is refused in one line."""

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.errors import HydraException
from omegaconf import OmegaConf
from torch import nn

from imgnet.config import ConfigError, RunConfig, parse_saved, plain
from imgnet.config.settings import differing, every_setting
from imgnet.launch.checks import check
from imgnet.launch.refusal import explain
from imgnet.parallel.averaging.registry import OPTIONS, way_of
from imgnet.parallel.build import build_strategy
from imgnet.parallel.flat import split_into_buckets
from imgnet.runtime import Runtime
from tests.commands import ROOT
from tests.composing import composed
from tests.distributed.models import SGD, make_optimizer, objective
from tests.test_topology_config import CPU

FILES = sorted(file.stem for file in (ROOT / "conf" / "averaging").glob("*.yaml"))
STEPS_PER_EPOCH = 100


def run(*overrides: str) -> RunConfig:
    return composed(*CPU, "topology=ring", *overrides)


def test_every_way_to_average_has_a_file_and_is_accepted() -> None:
    assert sorted(OPTIONS) == FILES
    for name in FILES:
        config = run(f"averaging={name}", *(["topology=directed-exp"] if name == "push_sum" else []))
        check(config)
        assert config.averaging.name == name
        assert type(config.averaging) is OPTIONS[name]
        assert parse_saved(OmegaConf.create(plain(config))) == config


def test_a_run_that_knew_no_choice_averaged_in_every_step() -> None:
    saved = plain(run())
    del saved["averaging"]
    assert parse_saved(OmegaConf.create(saved)) == run()


def test_a_run_that_rested_by_its_topology_rests_as_local_steps_do() -> None:
    """So runs that were made before can still be read and compared."""
    rests, saved = run("averaging=local", "averaging.every=3", "averaging.overlap=true"), plain(run())
    saved["topology"]["every"] = 3
    assert parse_saved(OmegaConf.create(saved)) == rests
    saved["topology"]["every"] = 1
    assert parse_saved(OmegaConf.create(saved)) == run()
    assert differing({"topology.every": 1}, every_setting(run())).keys().isdisjoint({"topology.every"})


@pytest.mark.parametrize("word", ["topology.every=2", "+topology.every=2"])
def test_the_key_that_is_gone_is_refused_with_what_says_the_same(word: str) -> None:
    with pytest.raises((HydraException, ConfigError)) as caught:
        run(word)
    problems = caught.value.problems if isinstance(caught.value, ConfigError) else [explain(caught.value)]
    instead = "workers rest between averages with averaging=local averaging.every=K averaging.overlap=true"
    assert problems == [f"there is no topology.every any more; {instead}"]
    check(run(*instead.partition("with ")[2].replace("K", "2").split(), "optimizer.quasi_global=true"))


def test_a_choice_and_a_key_of_a_method_are_refused_with_those_that_it_has() -> None:
    lines = []
    for word in ("averaging.merge=mux", "averaging.merge=3", "averaging.delay=3", "averaging.overlap=true"):
        with pytest.raises(HydraException) as caught:
            run(*STREAMING, word)
        lines.append(explain(caught.value))
    assert lines[:3] == [
        "averaging.merge=mux: no such choice; did you mean 'mix'?",
        "averaging.merge=3: no such choice; known: delta, mix",
        "unknown key 'averaging.delay'; in averaging, did you mean 'delay_steps'?",
    ]
    assert "known: alpha, delay_steps, every, fragments, lr, merge, momentum" in lines[3]


NEW_METHOD = """
from dataclasses import dataclass
from imgnet.config import AveragingConfig
from imgnet.parallel.averaging.methods.every_step import EveryStep
from imgnet.parallel.averaging.way import Way

@dataclass
class LazyConfig(AveragingConfig):
    idle: int = 3

WAY = Way(("lazy",), LazyConfig, lambda averaging, *_: (EveryStep, averaging.idle))
"""
COMPOSED_WITH_IT = """
import sys
from imgnet.parallel.averaging import methods
methods.__path__.append(sys.argv[1])
from hydra import compose, initialize_config_dir
from imgnet.config import parse, register_schemas
from imgnet.launch.checks import check
from imgnet.parallel.averaging.registry import way_of
register_schemas()
words = [f"hydra.searchpath=[file://{sys.argv[1]}/conf]", "data=synthetic", "cluster.accelerator=cpu", "precision=fp32"]
with initialize_config_dir(sys.argv[2], version_base="1.3"):
    config = parse(compose("config", [*words, "topology=ring", "averaging=lazy", "averaging.idle=5"]))
check(config)
assert way_of(config.averaging).make(config.averaging, config, 10)[1] == 5
assert "torch" not in sys.modules, "settings are known without torch"
"""


def test_a_new_method_is_one_file_and_its_option(tmp_path: Path) -> None:
    (tmp_path / "conf" / "averaging").mkdir(parents=True)
    (tmp_path / "lazy.py").write_text(NEW_METHOD)
    option = "defaults: [/hydra/schema/averaging/lazy@_here_, _self_]\nname: lazy\n"
    (tmp_path / "conf" / "averaging" / "lazy.yaml").write_text(option)
    command = [sys.executable, "-c", COMPOSED_WITH_IT, str(tmp_path), str(ROOT / "conf")]
    subprocess.run(command, cwd=ROOT, check=True)


def test_a_method_is_at_most_80_lines() -> None:
    folder = ROOT / "imgnet" / "parallel" / "averaging" / "methods"
    lines = {file.name: len(file.read_text().splitlines()) for file in folder.glob("*.py")}
    assert max(lines.values()) <= 80, lines


def settings_of(*overrides: str) -> dict[str, Any]:
    """What the method of a worker is made with."""
    config = run(*overrides)
    make = way_of(config.averaging).make(config.averaging, config, STEPS_PER_EPOCH)
    assert isinstance(make, partial)
    return make.keywords


def test_settings_reach_the_method() -> None:
    slowmo = settings_of("averaging=slowmo")
    assert (slowmo["lr"], slowmo["momentum"], slowmo["nesterov"], slowmo["scale_by_lr"]) == (1.0, 0.6, False, True)
    overrides = ["averaging.every=3", "averaging.start_epoch=2", "averaging.qsr_alpha=0.5", "averaging.exact_every=7"]
    intervals = settings_of("averaging=local", *overrides)["intervals"]
    assert (intervals.every, intervals.first_step, intervals.exact_every) == (3, 200, 7)
    assert (intervals.num_steps, intervals.warmup_steps, intervals.qsr_alpha) == (9000, 500, 0.5)
    factor = settings_of("averaging=adaptive")["factor"]
    assert factor.first_step == 1000
    assert factor(1000, factor.reference_lr) == 1.0


STREAMING = ["averaging=streaming_diloco"]


def test_a_model_of_few_buckets_is_split_into_as_many_as_there_are_fragments() -> None:
    named = [(str(size), nn.Parameter(torch.zeros(size))) for size in (10, 2000, 7, 300, 5)]
    for fewest, wanted in ((1, ["5 300 7 2000 10"]), (2, ["5 300 7 2000", "10"]), (3, ["5 300", "7 2000", "10"])):
        found = [" ".join(name for name, _ in bucket) for bucket in split_into_buckets(named, 2**20, fewest)]
        assert found == wanted
    assert [len(bucket) for bucket in split_into_buckets(named, 2**20, 9)] == [1] * 5


def test_more_fragments_than_tensors_are_refused_by_the_workers() -> None:
    config = run(*STREAMING, "averaging.every=200", "averaging.fragments=20", "averaging.delay_steps=0")
    runtime = Runtime(0, 1, 0, 1, torch.device("cpu"), 1)
    with pytest.raises(ConfigError, match=r"=streaming_diloco needs 20 parts, and model=resnet50 has 2 tensors"):
        build_strategy(config, nn.Linear(2, 2), objective, make_optimizer(SGD), runtime, STEPS_PER_EPOCH)


PUSH_SUM = ["averaging=push_sum"]
IN_A_RING = ", ".join(f"{{from: {rank}, to: {(rank + 1) % 4}, weight: 0.{rank + 2}}}" for rank in range(4))
ARROWS, AND_A_GROUP = (f"topology.rounds=[[{IN_A_RING}], [{more}]]" for more in ("", "{ranks: [0, 1]}"))
GROUP = "topology.rounds=[[{ranks: [0, 1, 2, 3]}]]"
REFUSED = [
    (
        ["topology=allreduce", "averaging=local"],
        "averaging=local averages parameters, and topology=allreduce",
    ),
    (["topology=allreduce", "averaging=diloco"], "averaging=diloco averages parameters, and topology=allreduce"),
    (["averaging=local", "optimizer.quasi_global=true"], "averaging=local has none there without averaging.overlap"),
    (["averaging=local", "topology.engine=decent_dp"], "topology.engine=decent_dp averages in every step (averaging="),
    (["averaging=noloco", "optimizer.quasi_global=true"], "optimizer.quasi_global=true takes averages before updates"),
    (["averaging=adaptive", "epochs=10"], "averaging.start_epoch=10 leaves nothing of epochs=10 to averaging=adaptive"),
    (["averaging=local", "averaging.start_epoch=95"], "averaging.start_epoch=95 leaves nothing of epochs=90"),
    (
        ["averaging=adaptive", "averaging.min_factor=0.9", "averaging.max_factor=0.5"],
        "averaging.min_factor=0.9 must",
    ),
    (["averaging=adaptive", "averaging.max_factor=1.5"], "averaging.max_factor=1.5 must be at most 1"),
    (["averaging=outer", "averaging.momentum=1"], "averaging.momentum=1.0 must be below 1"),
    (
        ["data=digits", "averaging=diloco", "epochs=20", "global_batch_size=64"],
        "averaging.every=500 is more than the run's 440 steps: its workers would never average",
    ),
    (["averaging=local", "averaging.every=0"], "averaging.every=0 must be at least 1"),
    (["averaging=local", "averaging.name=outer"], "averaging.name=outer stands among settings that are not its own"),
    (["topology=allreduce", "averaging=streaming_diloco"], "averaging=streaming_diloco averages parameters, and"),
    ([*STREAMING, "topology.engine=decent_dp"], "topology.engine=decent_dp averages in every step (averaging=streami"),
    ([*STREAMING, "averaging.delay_steps=25"], "averaging.delay_steps=25 must be below averaging.every / averaging."),
    ([*STREAMING, "averaging.fragments=3"], "averaging.every=100 must be a multiple of averaging.fragments=3"),
    ([*STREAMING, "averaging.alpha=1.01"], "averaging.alpha=1.01 must be at most 1"),
    ([*STREAMING, "averaging.alpha=-0.1"], "averaging.alpha=-0.1 must be at least 0"),
    ([*STREAMING, "averaging.alpha=nan"], "averaging.alpha=nan must be finite"),
    ([*STREAMING, "averaging.merge=delta", "averaging.alpha=0.3"], "averaging.alpha=0.3 needs averaging.merge=mix; it"),
    ([*STREAMING, "optimizer.quasi_global=true"], "optimizer.quasi_global=true takes averages before updates"),
    (
        PUSH_SUM,
        "averaging=push_sum is for directed rounds, and topology=ring has none; use a directed topology, such as",
    ),
    (["topology=custom", GROUP, *PUSH_SUM], "averaging=push_sum is for directed rounds, and topology=custom has none"),
    (["topology=allreduce", *PUSH_SUM], "averages parameters, and topology=allreduce gradients; use directed-exp"),
    (["topology=custom", ARROWS], "topology=custom is directed, for which averaging=every_step does not correct; it"),
    (["topology=directed-exp", "averaging=local"], "averaging=local does not correct; it needs averaging=push_sum"),
    (["topology=directed-exp", *PUSH_SUM, "topology.engine=decent_dp"], "averages in disjoint groups, which topology="),
    (["topology=directed-exp", *PUSH_SUM, "optimizer.quasi_global=true"], "=true needs averages whose weights add up"),
    (
        ["topology=custom", AND_A_GROUP, *PUSH_SUM, "topology.wire_dtype=bf16"],
        "averaging=push_sum needs rounds of arrows alone, which topology=custom has not; use topology.wire_dtype=fp32",
    ),
    (["averaging.name=lokal"], "averaging.name=lokal: there is no such way to average; did you mean 'local'?"),
]


@pytest.mark.parametrize(("overrides", "line"), REFUSED)
def test_refused_in_one_line(overrides: list[str], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(composed(*CPU, *([] if overrides[0].startswith("topology=") else ["topology=ring"]), *overrides))
    (problem,) = caught.value.problems
    assert line in problem
