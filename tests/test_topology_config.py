"""Topologies in the configuration: their keys, their schedule, and what is refused before the start."""

import pytest
from hydra.errors import ConfigCompositionException

from imgnet.config import ConfigError, DecentralizedConfig
from imgnet.config.explain import explain
from imgnet.launch.checks import check
from imgnet.parallel.schedule import build_schedule
from imgnet.parallel.topology import Phase, Schedule, build_topology, mixing_matrix
from tests.commands import ROOT
from tests.composing import composed

CPU = ["data=synthetic", "precision=fp32", "global_batch_size=240", "cluster.accelerator=cpu"]
PAIRS = "topology.rounds=[[{ranks: [0, 1]}, {ranks: [2, 3]}], [[1, 2, 0.5], [0, 3, 0.5]]]"


def schedule_of(*overrides: str, workers_per_node: int = 2) -> Schedule:
    topology = composed(*CPU, *overrides).topology
    assert isinstance(topology, DecentralizedConfig)
    return build_schedule(topology, 4, workers_per_node, steps_per_epoch=10)


@pytest.mark.parametrize("file", sorted((ROOT / "conf" / "topology").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_topology_composes_under_its_own_name(file) -> None:
    rounds = [PAIRS] if file.stem == "custom" else []
    topology = composed(*CPU, f"topology={file.stem}", *rounds).topology
    assert topology.name == file.stem
    if isinstance(topology, DecentralizedConfig):
        schedule = build_schedule(topology, 4, 2, steps_per_epoch=10)
        assert schedule.phases[0].topology.name == file.stem


def test_options_reach_the_rounds() -> None:
    assert mixing_matrix(schedule_of("topology=ring", "topology.self_weight=0.75").round_at(0), 4)[0, 0] == 0.75
    one, other = (schedule_of("topology=random", f"topology.seed={seed}").phases[0].topology for seed in (0, 1))
    assert one.rounds != other.rounds
    column = schedule_of("topology=grid", "topology.num_rows=4").round_at(0)
    assert [len(peers) for peers in column.neighbours] == [1, 2, 2, 1]
    assert len(schedule_of("topology=custom", PAIRS).phases[0].topology.rounds) == 2
    wide = schedule_of("topology=static-ring", "topology.neighbours=2").round_at(0)
    assert [len(peers) for peers in wide.neighbours] == [3] * 4
    assert len(schedule_of("topology=base-graph", "topology.max_degree=3").phases[0].topology.rounds) == 1
    for name in ("equi-static", "directed-equi-static"):
        drawn = [schedule_of(f"topology={name}", f"topology.seed={seed}", "topology.num_shifts=9") for seed in (0, 1)]
        assert drawn[0].round_at(0) != drawn[1].round_at(0)
    for name in ("equi-dyn", "directed-equi-dyn"):
        drawn = schedule_of(f"topology={name}", "topology.num_rounds=9", "topology.eta=1")
        assert len(drawn.phases[0].topology.rounds) == 9
        assert mixing_matrix(drawn.round_at(0), 4).min() in (0, 0.25)


def test_a_schedule_begins_anew_with_each_topology() -> None:
    written = "topology.schedule=[{after_epochs: 0, topology: complete}, {after_epochs: 3, topology: ring}]"
    schedule = schedule_of("topology=ring", "topology.self_weight=0.75", written)
    assert [(phase.first_step, phase.topology.name) for phase in schedule.phases] == [(0, "complete"), (30, "ring")]
    ring = schedule.phases[1].topology
    assert schedule.round_at(29) == schedule.phases[0].topology.rounds[0]
    assert [schedule.round_at(step) for step in (30, 31, 32)] == [ring.rounds[0], ring.rounds[1], ring.rounds[0]]
    assert mixing_matrix(ring.rounds[0], 4)[0, 0] == 0.75, "the run's own topology has the run's options"


def test_the_own_topology_holds_until_the_schedule_names_another() -> None:
    schedule = schedule_of("topology=exp", "topology.schedule=[{after_epochs: 2, topology: complete}]")
    assert [(phase.first_step, phase.topology.name) for phase in schedule.phases] == [(0, "exp"), (20, "complete")]


def test_next_rounds_are_distinct_and_busy() -> None:
    edge, pairs = [[0, 1, 0.5]], [{"ranks": [1, 2]}, {"ranks": [0, 3]}]
    rests = build_topology("custom", 4, 4, rounds=[[], edge, edge, pairs])
    schedule = Schedule((Phase(0, build_topology("complete", 4, 4)), Phase(5, rests)))
    assert schedule.next_rounds(4, limit=8) == [schedule.round_at(0)]
    assert schedule.next_rounds(8, limit=8) == [rests.rounds[3], rests.rounds[1]]
    assert schedule.next_rounds(8, limit=1) == [rests.rounds[3]]
    assert Schedule.constant(build_topology("ring", 1, 1)).next_rounds(0, limit=8) == []


@pytest.mark.parametrize(
    ("starts", "message"), [([], "must begin at step 0"), ([3], "must begin at step 0"), ([0, 5, 5], "after the one")]
)
def test_invalid_phases(starts: list[int], message: str) -> None:
    ring = build_topology("ring", 4, 4)
    with pytest.raises(ValueError, match=message):
        Schedule(tuple(Phase(start, ring) for start in starts))


def test_phases_of_different_sizes() -> None:
    with pytest.raises(ValueError, match=r"for \[2, 4\] workers"):
        Schedule((Phase(0, build_topology("ring", 4, 4)), Phase(1, build_topology("ring", 2, 2))))


def test_nodes_can_be_simulated() -> None:
    check(composed(*CPU, "topology=alternating-exp-ring", "cluster.simulated_nodes=2"))


REFUSED: list[tuple[list[str], list[str]]] = [
    (["topology=ring", "topology.self_weight=1.5"], ["topology.self_weight=1.5 must be below 1, or null"]),
    (["topology=allreduce", "topology.name=ring"], ["topology.name=ring stands among settings that are not its own"]),
    (["topology=ring", "topology.name=exp"], ["topology.name=exp stands among settings that are not its own"]),
    (["topology=ring", "topology.name=rign"], ["topology.name=rign: there is no such topology; did you mean 'ring'?"]),
    (["topology=grid", "topology.num_rows=3"], ["topology=grid has num_rows=3; with 4 workers it must be one of [1,"]),
    (["topology=random", "topology.num_rounds=1"], ["leaves workers unconnected; draw more rounds"]),
    (["topology=ring", "cluster.simulated_nodes=3"], ["cluster.simulated_nodes=3 does not divide the 4 workers"]),
    (["topology=alternating-exp-ring"], ["topology=alternating-exp-ring needs 2 or more nodes; cluster has 1"]),
    (["topology=custom"], ["topology.rounds has no value; set it with topology.rounds=..."]),
    (["topology=custom", "topology.rounds=[]"], ["topology=custom needs topology.rounds, a list of rounds"]),
    (["topology=custom", "topology.rounds=[[{ranks: [0, 1]}]]"], ["topology=custom never connects ranks [0, 1]"]),
    (
        ["topology=custom", "topology.rounds=[[[0, 7, 0.5]]]"],
        ["topology=custom, round 0, edge 0: rank 7 does not exist; with 4 workers the ranks are 0 to 3"],
    ),
    (
        ["topology=ring", "topology.schedule=[{after_epochs: 90, topology: exp}]"],
        ["topology.schedule has after_epochs=90, which epochs=90 never reaches"],
    ),
    (
        ["topology=ring", "topology.schedule=[{after_epochs: 5, topology: exp}, {after_epochs: 2, topology: ring}]"],
        ["topology.schedule has after_epochs [5, 2]; they must be 0 or more, and ascend"],
    ),
    (
        ["topology=ring", "topology.schedule=[{after_epochs: -1, topology: exp}]"],
        ["topology.schedule[0].after_epochs=-1 must be at least 0"],
    ),
    (
        ["topology=ring", "topology.schedule=[{after_epochs: 2, topology: exq}]"],
        ["topology.schedule[0].topology=exq: there is no such topology; did you mean 'exp'?"],
    ),
    (
        ["topology=ring", "topology.schedule=[{after_epochs: 2, topology: allreduce}]"],
        ["topology.schedule[0].topology=allreduce averages gradients; use complete"],
    ),
    (
        ["topology=ring", "topology.schedule=[{after_epochs: 0, topology: complete}]"],
        ["topology.schedule replaces topology=ring from the first step to the last"],
    ),
    (["topology=static-ring", "topology.neighbours=3"], ["topology=static-ring has neighbours=3; 4 workers have at"]),
    (["topology=base-graph", "topology.max_degree=0"], ["topology.max_degree=0 must be at least 1"]),
    (["topology=equi-dyn", "topology.eta=1.5"], ["topology.eta=1.5 must be at most 1"]),
    (
        ["topology=directed-exp"],
        ["=directed-exp is directed, for which averaging=every_step does not correct; it needs averaging=push_sum"],
    ),
    (["topology=directed-ring", "topology.engine=decent_dp"], ["topology=directed-ring is directed, for which "]),
    (
        ["topology=ring", "topology.schedule=[{after_epochs: 2, topology: directed-equi-dyn}]"],
        ["topology=directed-equi-dyn is directed, for which averaging=every_step does not correct"],
    ),
    (
        ["topology=custom", "topology.rounds=[[{from: 0, to: 1, weight: 0.5}, {from: 1, to: 0, weight: 0.5}]]"],
        ["topology=custom never connects ranks [0, 1] with [2]; add a group, an edge or an arrow"],
    ),
    (
        ["topology=star", "topology.engine=decent_dp"],
        ["topology.engine=decent_dp averages in disjoint groups, which topology=star is not; use"],
    ),
    (
        ["topology=random", "topology.engine=decent_dp", "cluster.cpu_workers_per_node=3"],
        ["topology.engine=decent_dp lets no worker rest in a round, as topology=random does"],
    ),
    (
        [
            "topology=exp", "topology.engine=decent_dp", "topology.wire_dtype=bf16", "max_grad_norm=1",
            "precision=fp16", "topology.schedule=[{after_epochs: 2, topology: complete}]",
        ],
        [
            "topology.engine=decent_dp sends fp32 only (topology.wire_dtype=bf16); use topology.engine=imgnet",
            "topology.engine=decent_dp has one topology for the whole run (topology.schedule)",
            "topology.engine=decent_dp has no loss scale that all workers agree on (precision=fp16)",
            "topology.engine=decent_dp clips each bucket, not the whole model (max_grad_norm=1.0)",
        ],
    ),
    (["topology=allreduce", "optimizer.quasi_global=true"], ["optimizer.quasi_global=true is momentum for workers"]),
    (
        ["topology=allreduce", "topology.compression=powersgd", "topology.powersgd_rank=0"],
        ["topology.powersgd_rank=0 must be at least 1"],
    ),
    (
        ["topology=allreduce", "topology.compression=powersgd", "topology.powersgd_start_step=1"],
        ["topology.powersgd_start_step=1 must be at least 2, or null"],
    ),
    (
        ["topology=allreduce", "topology.compression=powersgd", "topology.powersgd_min_compression_rate=nan"],
        ["topology.powersgd_min_compression_rate=nan must be finite and at least 0"],
    ),
    (
        ["topology=allreduce", "topology.compression=powersgd", "precision=fp16"],
        ["topology.compression=powersgd would carry an overflow of fp16's loss scale over to all later steps; use"],
    ),
    (
        [
            "topology=allreduce",
            "topology.compression=powersgd",
            "topology.powersgd_start_step=12",
            "epochs=6",
            "data.num_train=480",
        ],
        ["topology.powersgd_start_step=12 leaves nothing of the run's 12 steps to compress"],
    ),
    (
        ["topology=allreduce", "topology.compression=powersgd", "max_steps=20"],
        ["topology.powersgd_start_step="],
    ),
    (
        ["topology=allreduce", "topology.compression=bf16", "topology.powersgd_rank=2"],
        ["topology.powersgd_rank=2 needs topology.compression=powersgd; it is bf16"],
    ),
    (
        ["topology=allreduce", "topology.compression=powersgd", "cluster.cpu_workers_per_node=1"],
        ["topology.compression=powersgd has nothing to make smaller: one worker sends nothing"],
    ),
    (
        ["topology=allreduce", "topology.compression=bf16", "cluster=simulated"],
        ["topology.compression=bf16 is of torch's hooks between processes; cluster=simulated has none"],
    ),
    (
        ["topology=ring", "optimizer.quasi_global=true", "optimizer.momentum=0"],
        ["optimizer.quasi_global=true needs optimizer.momentum above 0"],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "lines"), REFUSED, ids=lambda value: " ".join(value)[:60])
def test_refused_with_one_line_for_each_problem(overrides: list[str], lines: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        check(composed(*CPU, *overrides))
    problems = caught.value.problems
    assert len(problems) == len(lines), problems
    for problem, line in zip(sorted(problems), sorted(lines), strict=True):
        assert problem.startswith(line) or line in problem, problems


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["topology=complete", "topology.num_rows=2"],
            "unknown key 'topology.num_rows'; in topology, known: bucket_mb, engine, name, schedule, wire_dtype",
        ),
        (["topology=ring", "topology.compression=powersgd"], "unknown key 'topology.compression'; in topology, "),
        (["topology=allreduce", "topology.compression=psgd"], "topology.compression=psgd: no such choice; "),
        (["topology=allreduce", "topology.powersgd_rank=1.5"], "topology.powersgd_rank=1.5: must be a whole number"),
        (["topology=ring", "topology.wiredtype=bf16"], "unknown key 'topology.wiredtype'; in topology, did you mean "),
        (["topology=ring", "topology.wire_dtype=fp8"], "topology.wire_dtype=fp8: no such choice; known: bf16, fp32"),
    ],
)
def test_options_of_other_families_are_unknown_keys(overrides: list[str], line: str) -> None:
    with pytest.raises(ConfigCompositionException) as caught:
        composed(*CPU, *overrides)
    assert explain(caught.value).startswith(line)
