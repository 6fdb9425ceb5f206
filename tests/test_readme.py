"""What the README tells people to type is accepted, and its example of a cluster works as it stands."""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from imgnet.cli import app
from imgnet.config import SlurmConfig
from imgnet.launch.checks import check
from tests.commands import ROOT
from tests.composing import composed
from tests.test_conf import imagenet_folder

__all__ = ["imagenet_folder"]

README = (ROOT / "README.md").read_text()
LINES = [line.partition("  #")[0].strip() for line in README.splitlines()]
RUNS = [line for line in LINES if re.match(r"(python|torchrun .*) ?run\.py", line) and "--help" not in line]
OWN_CLUSTER = "conf/cluster/mine.yaml"


def first_of_sweep(override: str) -> str:
    key, _, value = override.partition("=")
    return override if value.startswith(("[", "{")) else f"{key}={value.split(',')[0]}"


@pytest.mark.parametrize("line", RUNS)
def test_every_command_of_the_readme_is_accepted(line: str, imagenet_folder: str) -> None:
    words = shlex.split(line.partition("run.py")[2])
    overrides = [first_of_sweep(word) for word in words if "=" in word]
    data = (
        [] if any(word.startswith(("data=", "+experiments=")) for word in words) else [f"data.root={imagenet_folder}"]
    )
    check(composed(*overrides, *data))


def test_the_readme_has_commands_at_all() -> None:
    assert len(RUNS) >= 6


@pytest.mark.parametrize("group", ["model", "data", "topology", "averaging", "optimizer", "cluster"])
def test_the_table_of_groups_has_every_option(group: str) -> None:
    (row,) = [line for line in LINES if line.startswith(f"| `{group}` |")]
    options = {file.stem for file in (ROOT / "conf" / group).glob("*.yaml")}
    assert options <= set(re.findall(r"`([^`]+)`", row))


def test_the_example_of_a_cluster_is_accepted(tmp_path: Path, imagenet_folder: str) -> None:
    (yaml,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert len(yaml.strip().splitlines()) == 10
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "mine.yaml").write_text(yaml)
    config = composed("cluster=mine", f"hydra.searchpath=[file://{tmp_path}]", f"data.root={imagenet_folder}")
    check(config)
    assert isinstance(config.cluster, SlurmConfig)
    assert (config.cluster.nodes, config.cluster.gpus_per_node, config.cluster.gpu_type) == (2, 4, "H100")


def test_every_imgnet_command_of_the_readme_exists() -> None:
    known = set(get_command(app).commands)  # type: ignore[attr-defined]
    named = set(re.findall(r"`?imgnet ([a-z]+)", README)) - {"on"}
    assert named
    assert named <= known


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))])
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), target
