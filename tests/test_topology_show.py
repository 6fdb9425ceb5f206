"""``imgnet topology show``: what it says, what it draws, what it refuses."""

import math
from pathlib import Path

import pytest
from matplotlib import pyplot as plt
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import _should_compress
from typer.testing import CliRunner

from imgnet.cli import app
from imgnet.parallel.topology import FAMILIES, build_topology
from imgnet.parallel.topology.rounds import idle_round
from imgnet.results.pictures import topology_picture
from imgnet.results.pictures.topologies import describe_round, deviations
from imgnet.results.pictures.traffic import powersgd_values

RING = """\
    1/2 1/2   .   .
    1/2 1/2   .   .
      .   . 1/2 1/2
      .   . 1/2 1/2
"""


def show(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["topology", "show", *arguments])
    return done.exit_code, done.output


def test_rounds_matrices_and_bytes() -> None:
    code, text = show("ring", "--world-size", "4", "--workers-per-node", "2", "--num-parameters", "1000000")
    assert code == 0
    assert "ring, 4 workers on 2 nodes of 2" in text
    assert "round 0  {0,1}  {2,3}" in text
    assert RING in text
    assert "never; they only come closer" not in text, "a ring of four is exact in two rounds"
    assert [line.split() for line in text.splitlines() if line.strip().startswith(("fp32", "bf16"))] == [
        ["fp32", "2.0", "2.0", "2.0", "2.0", "4.0"],
        ["bf16", "1.0", "1.0", "1.0", "1.0", "2.0"],
    ]


def test_bytes_by_averaging() -> None:
    """exp on 4: two pairs, one copy of 4 MB in a step; 8, 500, 12 and 100 steps are those of ``conf/averaging``."""
    code, text = show("exp", "--world-size", "4", "--num-parameters", "1000000")
    assert code == 0
    lines = {
        line.split("  ")[0]: line.split()[-2:] for line in map(str.strip, text.splitlines()) if line.count(" step")
    }
    wanted = {
        "every_step": ["4.00", "2.00"], "adaptive": ["4.00", "2.00"], "local": ["0.50", "0.25"],
        "diloco": ["0.01", "0.00"], "slowmo": ["0.33", "0.17"], "noloco": ["0.08", "0.04"],
        "streaming_diloco": ["0.04", "0.02"], "gradients (topology=allreduce)": ["6.00", "3.00"],
    }  # fmt: skip
    assert {name: lines[name] for name in wanted} == wanted
    assert "push_sum" not in text


def test_powersgd_sends_what_torch_would() -> None:
    for shape in ((64, 3, 7, 7), (512, 512, 3, 3), (10, 512), (3, 900), (64,), (8, 4), (1, 1)):
        rows, columns = shape[0], math.prod(shape[1:])
        is_small, whole, low = _should_compress(rows, columns, min(rows, columns, 4), 2.0)
        assert powersgd_values(shape, 4, 2.0) == (low if is_small else whole)


def test_a_model_by_its_name() -> None:
    code, text = show("complete", "--world-size", "4", "--model", "small_cnn")
    assert code == 0
    assert "(small_cnn)" in text
    assert "gradients by PowerSGD of rank 4" in text


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - {"custom"}))
def test_every_topology_is_shown(name: str) -> None:
    code, text = show(name, "--world-size", "12", "--workers-per-node", "4")
    assert code == 0
    assert f"{name}, 12 workers on 3 nodes of 4" in text
    assert ("directed, doubly stochastic" in text) == name.startswith("directed-")


def test_arrows_in_words_and_bytes() -> None:
    arrows = "rounds=[[{from: 0, to: 1, weight: 0.5}, {from: 0, to: 2, weight: 0.25}], [{from: 1, to: 2, weight: 0.5}, \
{from: 2, to: 0, weight: 0.5}]]"
    code, text = show("custom", "--world-size", "3", "--num-parameters", "3000000", "-o", arrows)
    assert code == 0
    assert "directed, column-stochastic" in text
    assert "round 0  0: 1/2 to 1, 1/4 to 2  1: rests  2: rests" in text
    rows = [line.split() for line in text.splitlines()]
    assert ["fp32", "8.0", "12.0", "0.0", "0.0", "8.0"] in rows
    assert ["push_sum", "1", "step", "8.00", "4.00"] in rows
    assert "every_step" not in text, "which does not correct for directed rounds"


def test_a_picture_calls_exact_only_what_is() -> None:
    for name, exact in (("directed-equi-dyn", False), ("random", False), ("base-graph", True), ("exp", True)):
        _, axis = plt.subplots()
        topology_picture._draw_decay(axis, build_topology(name, 48, 8, **({} if exact else {"seed": 1})))
        assert [text.get_text() for text in axis.texts] == ["exact"] * exact, name
        plt.close("all")


@pytest.mark.parametrize(
    ("name", "workers", "per_node"),
    [("exp", 64, 8), ("torus", 64, 64), ("ring", 7, 7), ("complete", 1, 1), ("directed-exp", 64, 8)],
)
def test_few_lines_and_a_picture_for_any_size(name: str, workers: int, per_node: int, tmp_path: Path) -> None:
    png = tmp_path / "topology.png"
    code, text = show(name, "--world-size", str(workers), "--workers-per-node", str(per_node), "--png", str(png))
    assert code == 0
    assert len(text.splitlines()) < 60
    assert png.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["rnig", "--world-size", "4"], "topology=rnig is unknown; did you mean ring?"),
        (["ring", "--world-size", "4", "--workers-per-node", "3"], "is not divisible by workers_per_node=3"),
        (["ring", "--world-size", "4", "-o", "num_rows=2"], "topology=ring has no option num_rows"),
        (["ring", "--world-size", "4", "-o", "self_weight"], "--option self_weight: write key=value"),
        (["ring", "--world-size", "4", "--num-parameters", "0"], "--num-parameters 0: at least 1 is needed"),
        (["ring", "--world-size", "4", "--num-parameters", "9", "--model", "resnet50"], "not both"),
        (
            ["ring", "--world-size", "4", "--model", "resnet5"],
            "model.name=resnet5: neither torchvision nor timm has it",
        ),
    ],
)
def test_refusals(arguments: list[str], line: str) -> None:
    code, text = show(*arguments)
    assert code == 2
    assert line in text


def test_rounds_in_words() -> None:
    rounds = build_topology("random", 3, 3, self_weight=0.75).rounds
    assert "(each keeps 3/4)" in describe_round(rounds[0])
    assert "resting: " in describe_round(rounds[0])
    assert describe_round(idle_round(2)) == "nobody communicates"
    edges = build_topology("custom", 4, 4, rounds=[[[1, 2, 0.5]], [{"ranks": [0, 1, 2, 3]}]]).rounds
    assert describe_round(edges[0]) == "0: rests  1: 1/2 of 2  2: 1/2 of 1  3: rests"
    assert describe_round(edges[1]) == "{0..3}"


def test_what_is_left_of_a_disagreement() -> None:
    assert deviations(build_topology("exp", 8, 8), 3) == pytest.approx([1, 1, 1, 0], abs=1e-12)
    assert deviations(build_topology("static-ring", 4, 4), 2) == pytest.approx([1, 1 / 3, 1 / 9])
