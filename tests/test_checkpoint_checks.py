"""Where a run goes on from: what its settings must share with those of the checkpoint, told before anything starts."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from imgnet.checkpoint.checks import problems
from imgnet.checkpoint.manifest import Manifest, complete, differences, folder_of, partial_of, trained_settings
from imgnet.config import RunConfig, SwitchConfig, parse
from imgnet.parallel.checks import SCHEMAS
from imgnet.parallel.schedule import SEE_NODES
from imgnet.parallel.topology import FAMILIES, build_topology
from tests.test_config_ranges import example
from tests.test_config_settings import changed

FOUR_ON_ONE_NODE = (4, 4)


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return parse(example(RunConfig))


def on(topology: str, config: RunConfig) -> RunConfig:
    """The run with another topology, as it stands in ``conf/``."""
    return replace(config, topology=SCHEMAS[topology](name=topology))


def saved(run_dir: Path, config: RunConfig, workers: tuple[int, int] = FOUR_ON_ONE_NODE, **changes: Any) -> Path:
    """A checkpoint of a run whose workers wrote little."""
    folder = folder_of(run_dir / "checkpoints", 10)
    partial = partial_of(folder)
    partial.mkdir(parents=True)
    world_size, per_node = workers
    for rank in range(world_size):
        (partial / f"rank_{rank}.safetensors").write_bytes(b"state")
        (partial / f"rank_{rank}.json").write_text('{"bytes": 5, "crc32": 0}')
    known = {"step": 10, "epoch": 1, "world_size": world_size, "trained": trained_settings(config, per_node)}
    complete(partial, folder, Manifest(**known | {"metrics": {}} | changes))
    return folder


def told(config: RunConfig, place: Path, workers: tuple[int, int] = FOUR_ON_ONE_NODE, *, allow: bool = False) -> str:
    """What is said against going on from there; empty where nothing is."""
    checkpoint = replace(config.checkpoint, allow_differences=allow)
    return "\n".join(problems(replace(config, resume=str(place), checkpoint=checkpoint), *workers))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.root", "elsewhere"),
        ("data.crop_scale", [0.5, 1.0]),
        ("data.crop_ratio", [1.0, 1.0]),
        ("data.flip_probability", 0.25),
        ("data.mean", [0.0, 0.0, 0.0]),
        ("data.std", [1.0, 1.0, 1.0]),
        ("channels_last", False),
        ("compile", True),
        ("optimizer.lr", 0.5),
        ("seed", 2),
    ],
)
def test_another_setting_is_refused_with_both_values(key: str, value: Any, config: RunConfig, tmp_path: Path) -> None:
    saved(tmp_path, config)
    assert told(config, tmp_path) == ""
    other = changed(config, key, value)
    line = told(other, tmp_path)
    assert line.startswith(f"resume={tmp_path} is of another run: {key}=")
    assert line.count("\n") == 0
    assert "checkpoint.allow_differences=true starts from its averaged model all the same, at step 0" in line
    assert told(other, tmp_path, allow=True) == ""


def test_the_kind_of_data_counts(config: RunConfig, tmp_path: Path) -> None:
    folder = changed(config, "data.root", "data/Imagenet")
    kinds = {kind.name: changed(folder, "data.kind", kind) for kind in type(config.data.kind)}
    saved(tmp_path, kinds["folder"])
    assert "data.kind=folder, not shards" in told(kinds["shards"], tmp_path)


def test_what_does_not_change_the_steps_may_differ(config: RunConfig, tmp_path: Path) -> None:
    saved(tmp_path, config)
    other = config
    for key, value in {
        "name": "other", "max_steps": 100, "evaluate_every_epochs": 7, "log_every_steps": 7, "tracking.progress": False,
        "data.num_workers": 3, "checkpoint.keep_last": 9, "cluster.name": "elsewhere",
    }.items():  # fmt: skip
        other = changed(other, key, value)
    assert told(other, tmp_path) == ""


def test_nodes_count_where_the_topology_sees_them(config: RunConfig, tmp_path: Path) -> None:
    simulated = changed(config, "cluster.simulated_nodes", 2)
    for topology in FAMILIES.keys() - {"custom"}:
        saved(tmp_path / topology, on(topology, simulated))
        line = told(on(topology, config), tmp_path / topology)
        assert bool(line) is (topology in SEE_NODES), topology
        assert ("workers_per_node=2, not 4" in line) is (topology in SEE_NODES)
        assert told(on(topology, config), tmp_path / topology, (4, 2)) == "", "two real nodes are as two simulated ones"
        assert told(on(topology, config), tmp_path / topology, (2, 2)) == "", "another number of workers is no refusal"


def test_a_schedule_sees_nodes_where_one_of_its_topologies_does(config: RunConfig, tmp_path: Path) -> None:
    ring = on("ring", config)
    scheduled = changed(ring, "topology.schedule", [SwitchConfig(1, "hierarchical")])
    saved(tmp_path, scheduled, (4, 2))
    assert "workers_per_node=2, not 4" in told(scheduled, tmp_path)


def test_the_topologies_that_see_nodes_are_those_whose_rounds_depend_on_them() -> None:
    for name in FAMILIES.keys() - {"custom"}:
        one, other = (build_topology(name, 8, per_node).rounds for per_node in (2, 4))
        assert (one != other) is (name in SEE_NODES), name


def test_a_checkpoint_of_an_earlier_version_is_held_to_what_it_noted(config: RunConfig, tmp_path: Path) -> None:
    noted = {"model.name": config.model.name, "seed": config.seed, "topology.name": config.topology.name}
    saved(tmp_path, config, trained=noted, format=1)
    assert told(changed(config, "data.flip_probability", 0.25), tmp_path) == ""
    assert "seed=1, not 2" in told(changed(config, "seed", 2), tmp_path)


def test_a_key_that_came_later_stands_for_its_default(config: RunConfig, tmp_path: Path) -> None:
    trained = trained_settings(config, 4)
    del trained["label_smoothing"], trained["data.flip_probability"]
    saved(tmp_path, config, trained=trained)
    assert "label_smoothing=0.0, not 0.1" in told(config, tmp_path)
    assert told(changed(config, "label_smoothing", 0.0), tmp_path) == ""


def test_no_permission_makes_another_architecture_fit(config: RunConfig, tmp_path: Path) -> None:
    saved(tmp_path, config)
    other = changed(changed(config, "model.name", "resnet18"), "data.num_classes", 10)
    assert told(other, tmp_path, allow=True) == (
        f"resume={tmp_path} holds a model of model.name=resnet50, which does not fit model.name=resnet18\n"
        f"resume={tmp_path} holds a model of data.num_classes=1000, which does not fit data.num_classes=10"
    )


def test_a_checkpoint_that_is_not_whole_is_passed_over_or_refused(config: RunConfig, tmp_path: Path) -> None:
    folder = saved(tmp_path, config)
    (folder / "rank_2.safetensors").unlink()
    line = told(config, tmp_path)
    assert line.startswith(f"resume={tmp_path}: there is no whole checkpoint in that folder; {folder}/rank_2.safeten")
    newer = folder.rename(folder_of(folder.parent, 20))
    saved(tmp_path, config)
    assert newer.exists()
    assert told(config, tmp_path) == "", "the one before it is whole"


@pytest.mark.parametrize(
    "written",
    ["[]", "{}", "nonsense", '{"format": 3}', '{"step": "a"}', '{"trained": []}'],
)
def test_a_manifest_of_nonsense_is_refused_in_one_line(written: str, config: RunConfig, tmp_path: Path) -> None:
    folder = saved(tmp_path, config)
    whole = json.loads((folder / "manifest.json").read_text())
    changes = json.loads(written) if written.startswith("{") and written != "{}" else None
    (folder / "manifest.json").write_text(json.dumps(whole | changes) if changes else written)
    line = told(config, tmp_path)
    assert line.startswith(f"resume={tmp_path}: there is no whole checkpoint in that folder; {folder}: ")
    assert "\n" not in line


def test_differences_are_named_as_one_types_them(config: RunConfig, tmp_path: Path) -> None:
    before = changed(changed(config, "max_grad_norm", 1.0), "channels_last", False)
    manifest = Manifest(1, 1, 4, trained_settings(before, 4), {})
    assert differences(manifest, config, 4, 4) == ["channels_last=false, not true", "max_grad_norm=1.0, not null"]
