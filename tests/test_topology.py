"""Every family, for every number of workers and every division into nodes."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgnet.parallel.topology import (
    FAMILIES,
    Arrows,
    DirectedRound,
    Group,
    GroupRound,
    NeighbourRound,
    Topology,
    build_topology,
    bytes_per_step,
    is_connected,
    mixing_matrix,
    option_names,
    rounds_to_consensus,
    spectral_gap,
)
from imgnet.parallel.topology.families.exp import prime_factors
from imgnet.parallel.topology.rounds import idle_round

SIZES = range(1, 65)
LAYOUTS = [(size, local) for size in SIZES for local in range(1, size + 1) if size % local == 0]
NAMED = sorted(set(FAMILIES) - {"custom"})


def build_or_none(name: str, size: int, local: int) -> Topology | None:
    """The topology; None where it is refused, which only alternating-exp-ring may do."""
    try:
        return build_topology(name, size, local)
    except ValueError:
        assert name == "alternating-exp-ring"
        assert size > 1
        assert local == 1 or local == size
        return None


def check_doubly_stochastic(topology: Topology) -> None:
    ones = np.ones(topology.world_size)
    for round_ in topology.rounds:
        matrix = mixing_matrix(round_, topology.world_size)
        assert matrix.dtype == np.float64
        assert matrix.min() >= -1e-15
        np.testing.assert_allclose(matrix @ ones, ones, atol=1e-12)
        np.testing.assert_allclose(matrix.T @ ones, ones, atol=1e-12)
        if isinstance(round_, GroupRound):
            ranks = sorted(rank for group in round_.groups for rank in group.ranks)
            assert ranks == list(range(topology.world_size))


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("name", NAMED)
def test_every_layout_mixes_or_is_refused(name):
    last = ()
    for size, local in LAYOUTS:
        topology = build_or_none(name, size, local)
        if topology is None:
            continue
        assert (topology.name, topology.world_size) == (name, size)
        if topology.rounds != last:  # many families do not depend on the division into nodes
            check_doubly_stochastic(topology)
            assert is_connected(topology.rounds, size)
            last = topology.rounds
        if size == 1:
            assert all(round_.is_idle for round_ in topology.rounds)
            assert topology.plan(0) == (None,)
        else:
            assert not any(round_.is_idle for round_ in topology.rounds)


@pytest.mark.parametrize("size", SIZES)
def test_exp_is_exact_in_as_many_rounds_as_prime_factors(size):
    topology = build_topology("exp", size, 1)
    product = np.eye(size)
    for round_ in topology.rounds:
        product = mixing_matrix(round_, size) @ product
    np.testing.assert_allclose(product, np.full((size, size), 1 / size), atol=1e-12)
    factors = prime_factors(size)
    assert np.prod(factors) == size
    assert rounds_to_consensus(topology.rounds, size) == len(factors)
    assert len(topology.rounds) == max(1, len(factors))


@pytest.mark.parametrize(("size", "local"), [(4, 2), (12, 2), (24, 4), (30, 5), (32, 4), (64, 8), (36, 4), (45, 3)])
def test_alternating_exp_ring_is_exact(size, local):
    topology = build_topology("alternating-exp-ring", size, local)
    assert len(topology.rounds) == 2 * len(prime_factors(size // local))
    consensus = rounds_to_consensus(topology.rounds, size)
    assert consensus is not None
    assert consensus <= len(topology.rounds)


def groups_of(topology: Topology) -> list[list[tuple[tuple[int, ...], float]]]:
    written = []
    for round_ in topology.rounds:
        assert isinstance(round_, GroupRound)
        written.append(sorted((group.ranks, group.weight) for group in round_.groups))
    return written


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("complete", "complete"),
        ("ring", "ring"),
        ("exp", "one-peer-exp"),
        ("alternating-exp-ring", "alternating-exp-ring"),
    ],
)
def test_equals_decent_dp_where_that_can_build_it(ours, theirs):
    topo = pytest.importorskip("decent_dp.topo")
    topo.logger.disable("decent_dp.topo")
    compared = 0
    for size, local in LAYOUTS:
        if size == 1 or (ours == "alternating-exp-ring" and local == 1):
            continue
        reference = object.__new__(topo.TopologyReg.registry[theirs])
        reference._world_size, reference._local_world_size, reference._n_nodes = size, local, size // local
        try:
            rounds = reference._get_topo_edges()
        except ValueError:
            continue
        reference._validate_edges(rounds)
        expected = [sorted((tuple(edge.ranks), edge.weight) for edge in edges) for edges in rounds]
        assert groups_of(build_topology(ours, size, local)) == expected
        compared += 1
    assert compared > 10


def test_ring_order():
    assert [[group.ranks for group in round_.groups] for round_ in group_rounds("ring", 6)] == [
        [(0, 1), (2, 3), (4, 5)],
        [(1, 2), (3, 4), (0, 5)],
    ]
    assert [[group.ranks for group in round_.groups] for round_ in group_rounds("ring", 7)] == [
        [(0, 1), (2, 3), (4, 5, 6)],
        [(1, 2), (3, 4), (0, 5, 6)],
    ]


def group_rounds(name: str, size: int, **options: object) -> list[GroupRound]:
    rounds = build_topology(name, size, 1, **options).rounds
    assert all(isinstance(round_, GroupRound) for round_ in rounds)
    return [round_ for round_ in rounds if isinstance(round_, GroupRound)]


def test_self_weight():
    first = mixing_matrix(group_rounds("ring", 5, self_weight=0.8)[0], 5)
    np.testing.assert_allclose(first[0], [0.8, 0.2, 0, 0, 0])
    np.testing.assert_allclose(first[3], [0, 0, 0.1, 0.8, 0.1])
    static = build_topology("static-ring", 5, 1, self_weight=0.6)
    np.testing.assert_allclose(mixing_matrix(static.rounds[0], 5)[0], [0.6, 0.2, 0, 0, 0.2])
    two = build_topology("static-ring", 2, 1)
    np.testing.assert_allclose(mixing_matrix(two.rounds[0], 2), 0.5)
    lone = group_rounds("random", 3, self_weight=0.7)[0]
    assert sorted(group.weight for group in lone.groups) == [0.7, 1.0]


def test_neighbour_families():
    star = mixing_matrix(build_topology("star", 4, 1).rounds[0], 4)
    np.testing.assert_allclose(star[0], 0.25)
    np.testing.assert_allclose(star[2], [0.25, 0, 0.75, 0])
    torus = mixing_matrix(build_topology("torus", 12, 1, num_rows=3).rounds[0], 12)
    np.testing.assert_array_equal(np.flatnonzero(torus[0]), [0, 1, 3, 4, 8])
    np.testing.assert_allclose(torus[0][torus[0] > 0], 0.2)
    grid = mixing_matrix(build_topology("grid", 12, 1).rounds[0], 12)
    np.testing.assert_array_equal(np.flatnonzero(grid[0]), [0, 1, 4])
    np.testing.assert_array_equal(np.flatnonzero(grid[5]), [1, 4, 5, 6, 9])


def test_hierarchical_is_the_ring_of_nodes():
    ring, both = group_rounds("ring", 6), build_topology("hierarchical", 18, 3).rounds
    for inner, outer in zip(ring, both, strict=True):
        expected = np.kron(mixing_matrix(inner, 6), np.full((3, 3), 1 / 3))
        np.testing.assert_allclose(mixing_matrix(outer, 18), expected, atol=1e-15)
    assert build_topology("hierarchical", 6, 6).rounds == build_topology("complete", 6, 6).rounds
    assert build_topology("hierarchical", 6, 1).rounds == build_topology("ring", 6, 1).rounds


def test_random_is_seeded_and_does_not_change():
    assert build_topology("random", 8, 4, seed=3).rounds == build_topology("random", 8, 2, seed=3).rounds
    assert build_topology("random", 8, 4, seed=3).rounds != build_topology("random", 8, 4, seed=4).rounds
    assert len(build_topology("random", 9, 3, num_rounds=5).rounds) == 5
    first = group_rounds("random", 6, seed=1)[0]
    assert [group.ranks for group in first.groups] == [(0, 5), (1, 3), (2, 4)]  # of this seed, with any numpy


def test_plans_agree_with_matrices():
    for name in NAMED:
        topology = build_topology(name, 12, 4)
        for number, round_ in enumerate(topology.rounds):
            matrix = mixing_matrix(round_, 12)
            for rank in range(12):
                row = np.zeros(12)
                part = topology.plan(rank)[number]
                if part is None:
                    row[rank] = 1
                elif isinstance(part, Group):
                    row[list(part.ranks)] = (1 - part.weight) / (len(part.ranks) - 1)
                    row[rank] = part.weight
                elif isinstance(part, Arrows):
                    row[[peer for peer, _ in part.senders]] = [weight for _, weight in part.senders]
                    row[rank] = part.self_weight
                    column = np.zeros(12)
                    column[[peer for peer, _ in part.receivers]] = [weight for _, weight in part.receivers]
                    column[rank] = part.self_weight
                    np.testing.assert_array_equal(column, matrix[:, rank])
                else:
                    row[[peer for peer, _ in part.peers]] = [weight for _, weight in part.peers]
                    row[rank] = part.self_weight
                np.testing.assert_array_equal(row, matrix[rank])


def test_communicators():
    assert build_topology("ring", 4, 2).communicators() == ((0, 1), (2, 3), (1, 2), (0, 3))
    assert build_topology("star", 4, 2).communicators() == ()
    assert build_topology("complete", 1, 1).communicators() == ()


def test_known_spectral_gaps():
    assert spectral_gap(build_topology("complete", 7, 1).rounds, 7) == (1.0, 1.0)
    assert spectral_gap(build_topology("exp", 24, 1).rounds, 24) == (1.0, 1.0)
    size = 10
    static = spectral_gap(build_topology("static-ring", size, 1).rounds, size)
    assert static.step == pytest.approx(1 - (1 + 2 * np.cos(2 * np.pi / size)) / 3)
    one_peer = spectral_gap(build_topology("ring", size, 1).rounds, size)
    assert one_peer.period == pytest.approx(1 - np.cos(np.pi / (size / 2)) ** 2)
    assert one_peer.step == pytest.approx(1 - (1 - one_peer.period) ** 0.5)
    rounds = build_topology("ring", size, 1).rounds
    twice = spectral_gap([part for round_ in rounds for part in (idle_round(size), round_)], size)
    assert twice.period == pytest.approx(one_peer.period)
    assert twice.step < one_peer.step
    assert spectral_gap(build_topology("ring", 1, 1).rounds, 1) == (1.0, 1.0)


def test_spectral_gap_predicts_the_decay():
    topology = build_topology("ring", 14, 2)
    deviation = np.eye(14) - 1 / 14
    norms = []
    for step in range(400):
        deviation = (mixing_matrix(topology.round_at(step), 14) - 1 / 14) @ deviation
        norms.append(np.linalg.norm(deviation))
    measured = (norms[-1] / norms[199]) ** (1 / 200)
    assert 1 - spectral_gap(topology.rounds, 14).step == pytest.approx(measured, rel=1e-3)


def test_never_connected_rounds():
    rounds = (GroupRound((Group((0, 1), 0.5), Group((2, 3), 0.5))),)
    assert not is_connected(rounds, 4)
    assert spectral_gap(rounds, 4) == (0.0, 0.0)
    assert rounds_to_consensus(rounds, 4) is None


def test_rounds_to_consensus():
    assert rounds_to_consensus(build_topology("ring", 4, 1).rounds, 4) == 2
    assert rounds_to_consensus(build_topology("ring", 8, 1).rounds, 8) is None
    assert rounds_to_consensus([idle_round(9)] * 3 + [*build_topology("complete", 9, 1).rounds], 9) == 4
    assert rounds_to_consensus(build_topology("complete", 1, 1).rounds, 1) == 0


def test_a_consensus_that_takes_several_periods_is_exact_too():
    """The third round of one period and the first of the next together are what the second lacks."""

    def pairs(*groups: tuple[int, ...]) -> GroupRound:
        return GroupRound(tuple(Group(ranks, 1 / len(ranks)) for ranks in groups))

    rounds = (pairs((0, 1), (2,), (3,)), pairs((0, 2), (1, 3)), pairs((0,), (1,), (2, 3)))
    assert rounds_to_consensus(rounds, 4) == 4
    assert spectral_gap(rounds, 4) == (1.0, 1.0)


def test_bytes_per_step():
    ring = build_topology("ring", 4, 2)
    traffic = bytes_per_step(ring.rounds, 4, 2, num_parameters=100, bytes_per_value=4)
    np.testing.assert_allclose(traffic.within_node, 200)
    np.testing.assert_allclose(traffic.between_nodes, 200)
    complete = build_topology("complete", 4, 2)
    traffic = bytes_per_step(complete.rounds, 4, 2, num_parameters=100, bytes_per_value=4)
    np.testing.assert_allclose(traffic.within_node, [600, 0, 600, 0])
    np.testing.assert_allclose(traffic.between_nodes, [0, 600, 0, 600])
    traffic = bytes_per_step(
        complete.rounds, 4, 2, num_parameters=100, bytes_per_value=2, groups_exchange_directly=True
    )
    np.testing.assert_allclose(traffic.within_node, [100] * 4)
    np.testing.assert_allclose(traffic.between_nodes, [200] * 4)
    star = build_topology("star", 4, 2)
    traffic = bytes_per_step([idle_round(4), *star.rounds], 4, 2, num_parameters=100, bytes_per_value=2)
    np.testing.assert_allclose(traffic.within_node, [100, 100, 0, 0])
    np.testing.assert_allclose(traffic.between_nodes, [200, 0, 100, 100])


@settings(deadline=None)
@given(
    name=st.sampled_from(NAMED),
    nodes=st.integers(2, 12),
    local=st.integers(2, 8),
    step=st.integers(0, 10_000),
)
def test_any_topology_keeps_the_mean_and_never_spreads(name, nodes, local, step):
    size = nodes * local
    topology = build_topology(name, size, local)
    values = np.random.default_rng(step).normal(size=size)
    mixed = mixing_matrix(topology.round_at(step), size) @ values
    assert mixed.mean() == pytest.approx(values.mean(), abs=1e-12)
    assert np.ptp(mixed) <= np.ptp(values) + 1e-12
    gap = spectral_gap(topology.rounds, size)
    assert 0 < gap.step <= 1
    assert gap.step <= gap.period + 1e-12


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("rign", 4, 2), {}, "topology=rign is unknown; did you mean ring?"),
        (("zzz", 4, 2), {}, "topology=zzz is unknown; known are alternating-exp-ring, base-graph,"),
        (("ring", 10, 4), {}, "world_size=10 is not divisible by workers_per_node=4"),
        (("ring", 0, 1), {}, "world_size=0 must be 1 or more"),
        (("ring", 4, 0), {}, "workers_per_node=0 must be 1 or more"),
        (("ring", 4, 2), {"self_weight": 1.0}, "topology=ring has self_weight=1.0; it must be above 0 and below 1"),
        (("exp", 4, 2), {"seed": 1}, "topology=exp has no option seed; it has none"),
        (("random", 4, 2), {"seed": -1}, "topology=random has seed=-1; it must be 0 or more"),
        (("random", 4, 2), {"num_rounds": 0}, "topology=random has num_rounds=0; it must be 1 or more"),
        (("random", 4, 2), {"num_rounds": 1}, "num_rounds=1 leaves workers unconnected; draw more rounds"),
        (("grid", 12, 4), {"num_rows": 5}, r"num_rows=5; with 12 workers it must be one of \[1, 2, 3, 4, 6, 12\]"),
        (("random", 4, 2), {"seed": 1.5}, "topology=random has seed=1.5; it must be a whole number"),
        (("random", 4, 2), {"seed": "x"}, "topology=random has seed=x; it must be a whole number"),
        (("random", 4, 2), {"num_rounds": True}, "topology=random has num_rounds=True; it must be a whole number"),
        (("ring", 4, 2), {"self_weight": "half"}, "topology=ring has self_weight=half; it must be a number"),
        (("ring", 4, 2), {"self_weight": float("nan")}, "self_weight=nan; it must be above 0 and below 1"),
        (("static-ring", 4, 2), {"neighbours": 0}, "topology=static-ring has neighbours=0; it must be 1 or more"),
        (("static-ring", 5, 5), {"neighbours": 3}, "neighbours=3; 5 workers have at most 2 on each side"),
        (("base-graph", 4, 2), {"max_degree": 0}, "topology=base-graph has max_degree=0; it must be 1 or more"),
        (("equi-static", 4, 2), {"num_shifts": 0}, "topology=equi-static has num_shifts=0; it must be 1 or more"),
        (("equi-dyn", 4, 2), {"eta": 0.0}, "topology=equi-dyn has eta=0.0; it must be above 0 and at most 1"),
        (("equi-dyn", 4, 2), {"eta": float("nan")}, "topology=equi-dyn has eta=nan; it must be above 0 and at most 1"),
        (("equi-dyn", 4, 2), {"num_rounds": 1}, "topology=equi-dyn with num_rounds=1 leaves workers unconnected"),
        (("directed-equi-dyn", 4, 2), {"seed": -1}, "topology=directed-equi-dyn has seed=-1; it must be 0 or more"),
        (("alternating-exp-ring", 4, 4), {}, "topology=alternating-exp-ring needs 2 or more nodes; cluster has 1"),
        (("alternating-exp-ring", 4, 1), {}, "needs 2 or more workers per node; cluster has 1"),
    ],
)
def test_refusals(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        build_topology(*arguments, **options)


def test_options():
    assert option_names("random") == ["seed", "num_rounds", "self_weight"]
    assert build_topology("ring", 4, 2, self_weight=None) == build_topology("ring", 4, 2)


@pytest.mark.parametrize(
    ("round_", "message"),
    [
        (GroupRound(()), r"ranks \[0, 1, 2\] are in no group"),
        (GroupRound((Group((), 1.0),)), "a group has no ranks"),
        (GroupRound((Group((1, 0), 0.5), Group((2,), 1.0))), "not in ascending order"),
        (GroupRound((Group((0, 1), 0.5), Group((1, 2), 0.5))), "rank 1 is listed twice"),
        (GroupRound((Group((0, 1), 0.5), Group((2,), 0.5))), "rank 2 is alone in its group with weight=0.5"),
        (NeighbourRound(((), ())), "2 neighbour lists for 3 workers"),
        (NeighbourRound((((1, 0.5),), ((0, 0.4),), ())), "rank 0 takes 0.5 of rank 1, which takes 0.4 of it"),
        (NeighbourRound((((1, 0.5),), (), ())), "rank 0 takes 0.5 of rank 1, which takes 0 of it"),
        (NeighbourRound((((0, 0.5),), (), ())), "rank 0 is its own peer"),
        (NeighbourRound((((2, 0.1), (1, 0.1)), ((0, 0.1),), ((0, 0.1),))), "each may be there once, ascending"),
        (NeighbourRound((((1, -0.5),), ((0, -0.5),), ())), "must be above 0"),
        (NeighbourRound((((3, 0.5),), (), ())), "rank 3 does not exist; with 3 workers the ranks are 0 to 2"),
        (DirectedRound(((), ())), "2 lists of receivers for 3 workers"),
        (DirectedRound((((3, 0.5),), (), ())), "rank 3 does not exist; with 3 workers the ranks are 0 to 2"),
        (DirectedRound((((0, 0.5),), (), ())), "rank 0 sends to itself"),
        (DirectedRound((((2, 0.1), (1, 0.1)), (), ())), "each may be there once, ascending"),
        (DirectedRound((((1, 0.5), (1, 0.1)), (), ())), "each may be there once, ascending"),
        (DirectedRound((((1, 0.0),), (), ())), "rank 0 gives 0.0 to rank 1; it must be above 0 and below 1"),
        (DirectedRound((((1, float("nan")),), (), ())), "rank 0 gives nan to rank 1; it must be above 0 and below 1"),
        (DirectedRound((((1, 0.5), (2, 0.5)), (), ())), "rank 0 gives away all of its own"),
    ],
)
def test_invalid_rounds(round_, message):
    with pytest.raises(ValueError, match="topology=t, round 0: .*" + message):
        Topology("t", 3, 1, (round_,))


def test_no_rounds():
    with pytest.raises(ValueError, match="topology=t has no rounds"):
        Topology("t", 3, 1, ())


def test_needs_no_torch():
    code = "import sys, imgnet.parallel.topology; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
