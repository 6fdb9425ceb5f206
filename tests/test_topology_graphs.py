"""The families with published constructions: Base-(k+1) graphs, EquiTopo, directed graphs, wide rings."""

from itertools import pairwise
from math import log

import numpy as np
import pytest

from imgnet.parallel.topology import (
    DirectedRound,
    GroupRound,
    Topology,
    build_topology,
    components,
    is_connected,
    mixing_matrix,
    rounds_to_consensus,
    spectral_gap,
)

SIZES = range(2, 65)


def matrices(topology: Topology) -> list[np.ndarray]:
    return [mixing_matrix(round_, topology.world_size) for round_ in topology.rounds]


def product(topology: Topology) -> np.ndarray:
    total = np.eye(topology.world_size)
    for matrix in matrices(topology):
        total = matrix @ total
    return total


@pytest.mark.parametrize("max_degree", [1, 2, 3, 4, 7])
def test_base_graph_is_exact_for_every_number_of_workers_with_few_peers(max_degree):
    for size in SIZES:
        topology = build_topology("base-graph", size, 1, max_degree=max_degree)
        np.testing.assert_allclose(product(topology), 1 / size, atol=1e-15)
        most_peers = max((matrix > 0).sum(axis=1).max() - 1 for matrix in matrices(topology))
        assert most_peers <= max_degree
        assert len(topology.rounds) <= 2 * log(size) / log(max_degree + 1) + 2
        if max_degree == 1:
            assert all(isinstance(round_, GroupRound) for round_ in topology.rounds)


def test_base_graph_with_one_peer_and_five_workers_by_hand():
    """Four average by two; worker 4 then meets one of them, and gives 4/5 of the way; four average again."""
    described = [
        [(group.ranks, pytest.approx(group.weight)) for group in round_.groups if len(group.ranks) > 1]
        for round_ in build_topology("base-graph", 5, 1).rounds
        if isinstance(round_, GroupRound)
    ]
    halves = [[((0, 1), 0.5), ((2, 3), 0.5)], [((0, 2), 0.5), ((1, 3), 0.5)]]
    assert described == [*halves, [((0, 1), 0.5), ((3, 4), 0.2)], *halves]


def test_base_graph_has_as_many_rounds_as_the_authors_graph():
    """Of github.com/yukiTakezawa/BaseGraph, for 2 to 27 workers."""
    authors = {
        1: [1, 3, 2, 5, 4, 5, 3, 7, 6, 7, 5, 7, 6, 7, 4, 9, 8, 9, 7, 9, 8, 9, 6, 9, 8, 9],
        2: [1, 1, 2, 3, 2, 4, 3, 2, 4, 5, 3, 5, 5, 4, 4, 5, 3, 6, 5, 5, 6, 6, 4, 6, 6, 3],
        3: [1, 1, 1, 3, 2, 3, 2, 2, 4, 4, 2, 4, 4, 4, 2, 5, 3, 5, 4, 4, 5, 5, 3, 5, 5, 3],
    }
    for max_degree, lengths in authors.items():
        found = [len(build_topology("base-graph", size, 1, max_degree=max_degree).rounds) for size in range(2, 28)]
        assert found == lengths


def test_static_ring_with_several_neighbours():
    for size in range(2, 20):
        for neighbours in range(1, size // 2 + 1):
            (matrix,) = matrices(build_topology("static-ring", size, 1, neighbours=neighbours))
            distance = np.minimum(np.arange(size), size - np.arange(size))
            near = distance <= neighbours
            np.testing.assert_allclose(matrix[0], near / near.sum(), atol=1e-15)
            for row, after in pairwise(matrix):
                np.testing.assert_allclose(after, np.roll(row, 1), atol=1e-15)
    (matrix,) = matrices(build_topology("static-ring", 8, 1, neighbours=2, self_weight=0.6))
    np.testing.assert_allclose(matrix[3], [0, 0.1, 0.1, 0.6, 0.1, 0.1, 0, 0])


@pytest.mark.parametrize("num_shifts", [None, 1, 3])
def test_equi_static_is_the_mean_of_shifts_that_connect_all(num_shifts):
    for size in SIZES:
        number = num_shifts or (size - 1).bit_length()
        for seed in range(3):
            options = {"seed": seed, "num_shifts": num_shifts}
            topology = build_topology("directed-equi-static", size, 1, **options)
            (matrix,) = matrices(topology)
            times = matrix[1:, 0] * size / (size - 1) * number  # so often each shift was drawn
            np.testing.assert_allclose(times, np.round(times), atol=1e-12)
            assert round(times.sum()) == number
            for column, after in pairwise(matrix.T):
                np.testing.assert_allclose(after, np.roll(column, 1), atol=1e-15)
            assert is_connected(topology.rounds, size)
            assert is_connected(build_topology("equi-static", size, 1, **options).rounds, size)


def test_equi_static_takes_the_directed_ones_shifts_in_both_directions():
    for size in SIZES:
        (directed,) = matrices(build_topology("directed-equi-static", size, 1, seed=4))
        (undirected,) = matrices(build_topology("equi-static", size, 1, seed=4))
        np.testing.assert_allclose(undirected, (directed + directed.T) / 2, atol=1e-15)
        np.testing.assert_allclose(directed.diagonal(), 1 / size, atol=1e-15)


def test_the_mean_over_all_shifts_is_the_exact_average():
    size, total = 12, np.zeros((12, 12))
    for shift in range(1, size):
        rounds = build_topology("directed-equi-dyn", size, 1, num_rounds=256, eta=1.0).rounds
        found = {tuple(mixing_matrix(round_, size)[:, 0].nonzero()[0]): round_ for round_ in rounds}
        total += mixing_matrix(found[0, shift], size) / (size - 1)
    np.testing.assert_allclose(total, 1 / size, atol=1e-15)


def test_equi_dyn_pairs_workers_at_one_distance():
    for size in SIZES:
        for round_ in build_topology("equi-dyn", size, 1, eta=0.75).rounds:
            assert isinstance(round_, GroupRound)
            pairs = [group for group in round_.groups if len(group.ranks) == 2]
            distances = {(b - a) % size for a, b in (group.ranks for group in pairs)}
            assert len({min(distance, size - distance) for distance in distances}) == 1
            assert all(group.weight == pytest.approx(1 - 0.75 * (size - 1) / size) for group in pairs)
            alone = [group.ranks[0] for group in round_.groups if len(group.ranks) == 1]
            (distance,) = {min(distance, size - distance) for distance in distances}
            assert not any((rank + distance) % size in alone for rank in alone), "two that rest could have met"


def test_drawn_rounds_do_not_change():
    """The same on every machine, with any numpy: a run that resumes elsewhere must find its rounds."""
    first = build_topology("equi-dyn", 7, 1, seed=2).rounds[:3]
    assert [sorted(g.ranks for g in r.groups if len(g.ranks) > 1) for r in first if isinstance(r, GroupRound)] == [
        [(1, 2), (3, 4), (5, 6)],
        [(0, 5), (1, 6), (2, 4)],
        [(0, 4), (1, 5), (3, 6)],
    ]
    (arrows,) = build_topology("directed-equi-static", 9, 1, seed=2).rounds
    assert isinstance(arrows, DirectedRound)
    assert [receiver for receiver, _ in arrows.receivers[0]] == [2, 5, 6, 7]


@pytest.mark.parametrize("size", SIZES)
def test_directed_exp_is_one_peer_and_exact_for_powers_of_two_alone(size):
    topology = build_topology("directed-exp", size, 1)
    for power, matrix in enumerate(matrices(topology)):
        expected = (np.eye(size) + np.roll(np.eye(size), 2**power, axis=0)) / 2
        np.testing.assert_array_equal(matrix, expected)
    assert 2 ** (len(topology.rounds) - 1) < size <= 2 ** len(topology.rounds)
    exact = rounds_to_consensus(topology.rounds, size)
    assert exact == (len(topology.rounds) if size & (size - 1) == 0 else None)


def test_directed_ring_has_the_spectrum_of_its_shift():
    for size in (2, 3, 5, 10, 64):
        topology = build_topology("directed-ring", size, 1)
        np.testing.assert_array_equal(matrices(topology)[0], (np.eye(size) + np.roll(np.eye(size), 1, axis=0)) / 2)
        assert spectral_gap(topology.rounds, size).step == pytest.approx(1 - np.cos(np.pi / size))
    assert build_topology("directed-ring", 4, 2).plan(0)[0].receivers == ((1, 0.5),)  # type: ignore[union-attr]
    assert build_topology("directed-ring", 4, 2).plan(0)[0].senders == ((3, 0.5),)  # type: ignore[union-attr]


UNEVEN = [
    [{"from": 0, "to": 1, "weight": 0.7}, {"from": 1, "to": 2, "weight": 0.2}, {"from": 1, "to": 3, "weight": 0.3}],
    [{"from": 2, "to": 0, "weight": 0.6}, {"from": 3, "to": 0, "weight": 0.9}],
]


def test_push_sum_on_column_stochastic_rounds_comes_to_the_mean_as_fast_as_the_gap_says():
    topology = build_topology("custom", 4, 4, rounds=UNEVEN)
    x, w = np.random.default_rng(3).normal(size=4), np.ones(4)
    mean, errors = x.mean(), []
    for step in range(240):
        matrix = mixing_matrix(topology.round_at(step), 4)
        x, w = matrix @ x, matrix @ w
        assert x.sum() == pytest.approx(4 * mean, abs=1e-12)
        assert w.sum() == pytest.approx(4, abs=1e-12)
        errors.append(np.abs(x / w - mean).max())
    assert np.abs(w - 1).max() > 0.3, "without push-sum's weights the workers would be far from the mean"
    assert errors[-1] < 1e-12
    gap = spectral_gap(topology.rounds, 4)
    assert (errors[39] / errors[19]) ** (1 / 20) == pytest.approx(1 - gap.step, rel=0.05)
    assert rounds_to_consensus(topology.rounds, 4) is None


def test_push_sum_that_is_exact_in_finitely_many_rounds():
    """Rank 0 holds three quarters of all there is, in values and in weights, whatever each began with."""
    arrows = [{"from": 0, "to": 1, "weight": 0.25}, {"from": 1, "to": 0, "weight": 0.75}]
    topology = build_topology("custom", 2, 2, rounds=[arrows])
    np.testing.assert_array_equal(matrices(topology)[0], [[0.75, 0.75], [0.25, 0.25]])
    assert rounds_to_consensus(topology.rounds, 2) == 1
    assert spectral_gap(topology.rounds, 2) == (1.0, 1.0)


def test_arrows_connect_only_those_that_hear_of_one_another():
    chain = DirectedRound((((1, 0.5),), ((2, 0.5),), ((1, 0.5),), ()))
    assert components([chain], 4) == [[0], [1, 2], [3]]
    assert not is_connected([chain], 4)
    closed = DirectedRound((((1, 0.5),), ((2, 0.5),), ((3, 0.5),), ((0, 0.5),)))
    assert is_connected([closed], 4)
