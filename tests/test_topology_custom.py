"""Topologies that a user writes down."""

import numpy as np
import pytest

from imgnet.parallel.topology import build_topology, mixing_matrix


def test_groups_and_edges():
    rounds = [
        [{"ranks": [1, 0], "weight": 0.7}, {"ranks": [2, 3]}],
        [[2, 1, 0.25], [0, 3, 0.5]],
        [],
        [{"ranks": [1, 2]}],
    ]
    topology = build_topology("custom", 4, 2, rounds=rounds)
    first, second, idle, last = (mixing_matrix(round_, 4) for round_ in topology.rounds)
    np.testing.assert_allclose(first, [[0.7, 0.3, 0, 0], [0.3, 0.7, 0, 0], [0, 0, 0.5, 0.5], [0, 0, 0.5, 0.5]])
    np.testing.assert_allclose(second, [[0.5, 0, 0, 0.5], [0, 0.75, 0.25, 0], [0, 0.25, 0.75, 0], [0.5, 0, 0, 0.5]])
    np.testing.assert_array_equal(idle, np.eye(4))
    assert [round_.is_idle for round_ in topology.rounds] == [False, False, True, False]
    np.testing.assert_array_equal(last[0], [1, 0, 0, 0])


def test_arrows_keep_the_sum_and_not_the_rows():
    ways = [
        {"from": 0, "to": 1, "weight": 0.5},
        {"from": 0, "to": 2, "weight": 0.25},
        {"from": 2, "to": 0, "weight": 0.1},
    ]
    back = [{"from": 1, "to": 2, "weight": 0.75}]
    topology = build_topology("custom", 3, 3, rounds=[ways, back])
    assert topology.is_directed
    np.testing.assert_allclose(mixing_matrix(topology.rounds[0], 3), [[0.25, 0, 0.1], [0.5, 1, 0], [0.25, 0, 0.9]])
    np.testing.assert_allclose(mixing_matrix(topology.rounds[1], 3), [[1, 0, 0], [0, 0.25, 0], [0, 0.75, 1]])
    assert not build_topology("custom", 3, 3, rounds=[[{"ranks": [0, 1, 2]}]]).is_directed


def test_one_worker_never_communicates():
    assert build_topology("custom", 1, 1, rounds=[[[0, 1, 0.5]]]).rounds[0].is_idle


@pytest.mark.parametrize(
    ("rounds", "message"),
    [
        ([], "topology=custom needs topology.rounds, a list of rounds"),
        ("ring", "topology=custom needs topology.rounds"),
        ([{"ranks": [0, 1]}], "topology=custom, round 0: .* is no list"),
        ([[{"ranks": [0, 1]}, [2, 3, 0.5]]], "topology=custom, round 0: it has both groups and edges"),
        ([[{"ranks": [0, 1]}, {"from": 0, "to": 1}]], "round 0: it has both groups and arrows; a round is"),
        ([[{"from": 0, "to": 1}]], "round 0, arrow 0: {'from': 0, 'to': 1} is no arrow; write {from: 0, to: 1, weight"),
        ([[{"from": 0, "to": 1.5, "weight": 0.5}]], "round 0, arrow 0: .* is no arrow"),
        ([[{"from": 0, "to": 4, "weight": 0.5}]], "round 0, arrow 0: rank 4 does not exist"),
        (
            [[{"from": 0, "to": 1, "weight": 1.0}]],
            "round 0: rank 0 gives 1.0 to rank 1; it must be above 0 and below 1",
        ),
        (
            [[{"from": rank, "to": rank + 1, "weight": 0.5} for rank in range(3)]],
            r"never connects ranks \[0\] with \[1\]; add a group, an edge or an arrow",
        ),
        ([[], [{"ranks": [0, 1], "wieght": 1}]], "topology=custom, round 1, group 0: key 'wieght' is unknown"),
        ([[{"weight": 1}]], "round 0, group 0: ranks=None must be a list of one or more whole numbers"),
        ([[{"ranks": [0, 1.5]}]], r"ranks=\[0, 1.5\] must be a list of one or more whole numbers"),
        ([[{"ranks": [0, 1], "weight": "half"}]], "weight='half' must be a number"),
        ([[{"ranks": [0, 1], "weight": 1.0}]], "weight=1.0; it must be above 0 and below 1"),
        ([[{"ranks": [0, 1]}, {"ranks": [1, 2]}]], "round 0: rank 1 is listed twice"),
        ([[{"ranks": [0, 4]}]], "round 0: rank 4 does not exist; with 4 workers the ranks are 0 to 3"),
        ([[[0, 1]]], r"round 0, edge 0: \[0, 1\] is neither a group nor an edge; write groups"),
        ([[[0, 7, 0.5]]], "round 0, edge 0: rank 7 does not exist"),
        ([[[0, 1, 0.2], [1, 0, 0.2]]], r"round 0: edge \[0, 1\] is listed twice; add up the weights"),
        ([[[0, 1, 0.6], [1, 2, 0.6]]], "round 0: the weights of rank 1 add up to 1.2"),
        ([[[0, 0, 0.6]]], "round 0, edge 0: rank 0 is its own peer"),
        (
            [[[0, 1, 0.5], [2, 3, 0.5]]],
            r"never connects ranks \[0, 1\] with \[2, 3\]; add a group, an edge or an arrow",
        ),
    ],
)
def test_refusals(rounds, message):
    with pytest.raises(ValueError, match=message):
        build_topology("custom", 4, 2, rounds=rounds)
