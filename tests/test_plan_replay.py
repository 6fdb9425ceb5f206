"""The replay against answers by hand, against the plain recursions, and one way of replaying against the other."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from imgnet.config import GroupAlgorithm
from imgnet.parallel.averaging.rhythm import Fragments, Rhythm
from imgnet.parallel.topology import Schedule, build_topology
from imgnet.plan.timeline.method import AllReduceMethod, GossipMethod, Method
from imgnet.plan.timeline.network import Link, Network
from imgnet.plan.timeline.replay import Timeline, replay, replay_each
from imgnet.plan.timeline.script import Script, Work
from imgnet.plan.timeline.vectors import replay_together

PASS_S, UPDATE_S, LATENCY_S, RATE = 1.0, 0.125, 0.01, 1000.0
READY = 0.75
"""The one bucket's gradients, as a share of the pass."""


def together(method: Method, work: Work, factors: np.ndarray) -> Timeline:
    end_s, wait_s, _ = replay_together(Script(method, work), factors)
    return Timeline(end_s, wait_s)


BOTH = pytest.mark.parametrize("way", [together, replay_each])
Way = Callable[[Method, Work, np.ndarray], Timeline]


def network(num_nodes: int, per_node: int = 1, nics: int = 1, **options: object) -> Network:
    within, between = Link(LATENCY_S / 10, 50 * RATE), Link(LATENCY_S, RATE)
    return Network(num_nodes, per_node, within, between, nics, GroupAlgorithm.ring, **options)  # type: ignore[arg-type]


def work(shares: Sequence[float] = (READY,), update_s: float = UPDATE_S) -> Work:
    ready = np.array(shares) * PASS_S
    return Work(ready, PASS_S, np.full(len(shares), update_s / len(shares)))


def gossip(name: str, links: Network, sizes: Sequence[float], per_node: int | None = None, **options: object) -> Method:
    topology = build_topology(name, links.world_size, per_node or links.workers_per_node, **options)
    return GossipMethod(sizes, [0.0] * len(sizes), Schedule.constant(topology), links)


def even(steps: int, workers: int) -> np.ndarray:
    return np.ones((steps, workers))


@BOTH
def test_two_workers_one_bucket(way: Way) -> None:
    links = network(2)
    for num_bytes in (10.0, 400.0, 3000.0):
        # A ring of two sends the half twice, one after the other.
        all_reduce = 2 * LATENCY_S + num_bytes / RATE
        took = way(AllReduceMethod([num_bytes], links), work(), even(5, 2))
        assert took.step_s() == pytest.approx(max(PASS_S, READY * PASS_S + all_reduce) + UPDATE_S)
        # A message is under way from one update to the next.
        exchange = LATENCY_S + num_bytes / RATE
        took = way(gossip("ring", links, [num_bytes]), work(), even(6, 2))
        assert took.step_s(1) == pytest.approx(max(PASS_S, exchange) + UPDATE_S)
        waited = max(0.0, exchange - PASS_S)
        assert took.wait_s[1:] == pytest.approx(np.full((5, 2), waited))


@BOTH
@pytest.mark.parametrize(("nics", "share"), [(1, 8), (2, 4), (8, 1), (16, 1)])
def test_eight_flows_share_the_interfaces_of_a_node(way: Way, nics: int, share: int) -> None:
    links = network(2, per_node=8, nics=nics)
    across = [[{"ranks": [rank, rank + 8]} for rank in range(8)], [{"ranks": list(range(16))}]]
    method = gossip("custom", links, [500.0], rounds=[across[0], across[0], across[1]])
    took = way(method, work(), even(3, 16))
    seconds = LATENCY_S + share * 500.0 / RATE
    # Messages of one round are not in the way of the next: one bucket is sent again only when it is through.
    assert took.end_s[2] - took.end_s[1] == pytest.approx(np.full(16, max(PASS_S, seconds) + UPDATE_S))


@BOTH
@pytest.mark.parametrize("name", ["ring", "exp", "complete", "static-ring", "alternating-exp-ring", "hierarchical"])
def test_computation_hides_all(way: Way, name: str) -> None:
    links = network(4, per_node=2)
    took = way(gossip(name, links, [10.0, 20.0, 5.0]), work([0.4, 0.6, 1.0]), even(6, 8))
    assert took.step_s() == pytest.approx(PASS_S + UPDATE_S)
    assert not took.wait_s.any()


@BOTH
def test_a_worker_that_is_always_twice_as_slow(way: Way) -> None:
    links, sizes = network(4), [10.0]
    factors = even(40, 4)
    factors[:, 2] = 2.0
    all_reduce = way(AllReduceMethod(sizes, links), work(), factors)
    tail = 2 * READY * PASS_S + 6 * LATENCY_S + 1.5 * 10.0 / RATE
    assert all_reduce.step_s(20) == pytest.approx(max(2 * PASS_S, tail) + UPDATE_S)
    for name in ("ring", "complete"):
        took = way(gossip(name, links, sizes), work(), factors)
        assert took.step_s(20) == pytest.approx(2 * PASS_S + UPDATE_S), "in the end all go at its pace"
        assert not took.wait_s[:, 2].any(), "it never waits itself"
    ring = way(gossip("ring", links, sizes), work(), factors).end_s
    # By hand. Its first message goes out at 1.625, before anybody needs it; its second at 3.75 to rank 1, who is at 3.
    assert ring[2] == pytest.approx(np.array([2.25, 2.25, 4.25, 2.25]))
    arrives = 3.75 + LATENCY_S + 10.0 / RATE
    assert ring[3] == pytest.approx(np.array([3.375, arrives + UPDATE_S + 0.25, 6.375, 3.375]))


@BOTH
def test_slow_in_turn_costs_gossip_less_than_all_reduce(way: Way) -> None:
    links, factors = network(2), even(8, 2)
    factors[::2, 0] = factors[1::2, 1] = 2.0
    all_reduce = way(AllReduceMethod([0.0], links), work([1.0]), factors)
    assert all_reduce.step_s() == pytest.approx(2 * PASS_S + 2 * LATENCY_S + UPDATE_S), "somebody is slow in each step"
    took = way(gossip("ring", links, [0.0]), work([1.0], update_s=0.0), factors).end_s
    # By hand: who was slow has its peer's message already; who was not waits for a message of the step before only.
    expected = np.array([[0, 0], [2, 1], [3, 3], [5, 4], [6, 6]], dtype=float)
    assert took[:5] == pytest.approx(expected, abs=4 * LATENCY_S)


def naive_gossip(
    peers: Callable[[int, int], list[int]], cost: Callable[[int, int], float], factors: np.ndarray
) -> np.ndarray:
    """One bucket: end_i(t) = max(end_i(t-1) + C_i(t), max over peers j of max(end_i, end_j)(t-1) + T) + update."""
    steps, workers = factors.shape
    sent = np.zeros((steps, workers))
    ends = np.zeros((steps + 1, workers))
    for step in range(steps):
        for rank in range(workers):
            arrived = [
                max(sent[step - 1, rank], sent[step - 1, peer]) + cost(rank, peer)
                for peer in (peers(step - 1, rank) if step else [])
            ]
            before_update = ends[step, rank] + READY * PASS_S * factors[step, rank]
            sent[step, rank] = max([before_update, *arrived]) + UPDATE_S
            ends[step + 1, rank] = sent[step, rank] + (1 - READY) * PASS_S * factors[step, rank]
    return ends


@BOTH
@pytest.mark.parametrize("name", ["ring", "exp", "random"])
@pytest.mark.parametrize("num_bytes", [10.0, 900.0])
def test_gossip_of_pairs_is_the_plain_recursion(way: Way, name: str, num_bytes: float) -> None:
    links = network(8, per_node=2)
    topology = build_topology(name, 16, 2)
    factors = 1 + 0.2 * np.random.default_rng(3).random((30, 16))

    def peers(step: int, rank: int) -> list[int]:
        part = topology.round_at(step).part(rank)
        return [] if part is None else [peer for peer in part.ranks if peer != rank]  # type: ignore[union-attr]

    def cost(rank: int, peer: int) -> float:
        return LATENCY_S / 10 + num_bytes / (50 * RATE)

    # Within nodes alone, so that no interface is shared.
    inside = Network(1, 16, links.within, links.between)
    method = GossipMethod([num_bytes], [0.0], Schedule.constant(topology), inside)
    took = way(method, work(), factors)
    assert took.end_s == pytest.approx(naive_gossip(peers, cost, factors), rel=1e-12)


@BOTH
def test_all_reduce_is_the_plain_recursion(way: Way) -> None:
    links, sizes, shares = network(4, per_node=2), [900.0, 30.0, 2000.0, 1.0], [0.35, 0.5, 0.9, 1.0]
    factors = 1 + 0.3 * np.random.default_rng(5).random((20, 8))
    took = way(AllReduceMethod(sizes, links), work(shares), factors)
    clock, expected = np.zeros(8), [np.zeros(8)]
    for slowness in factors:
        through = 0.0
        for size, share in zip(sizes, shares, strict=True):
            # 14 messages of an eighth, 6 of them between the four nodes.
            cost = 8 * LATENCY_S / 10 + 6 * LATENCY_S + 2 * 7 / 8 * size / RATE
            through = max(through, (clock + share * PASS_S * slowness).max()) + cost
        clock = np.maximum(clock + PASS_S * slowness, through) + UPDATE_S
        expected.append(clock)
    assert took.end_s == pytest.approx(np.array(expected), rel=1e-12)


@pytest.mark.parametrize("name", ["ring", "exp", "complete", "static-ring", "torus", "random", "alternating-exp-ring"])
@pytest.mark.parametrize("workers", [12, 16])
def test_both_replays_agree_where_rounds_do_not_meet(name: str, workers: int) -> None:
    links = network(workers // 4, per_node=4, nics=2)
    factors = 1 + 0.1 * np.random.default_rng(7).random((16, workers))
    shares, sizes = [0.35, 0.5, 0.7, 1.0], [40.0, 10.0, 25.0, 1.0]
    method = gossip(name, links, sizes)
    one, other = together(method, work(shares), factors), replay_each(method, work(shares), factors)
    assert one.end_s == pytest.approx(other.end_s, rel=1e-9)
    assert one.wait_s.sum() == pytest.approx(other.wait_s.sum(), abs=1e-9)


def test_rounds_that_meet_are_replayed_event_by_event_or_said_to_be_bounds() -> None:
    links, shares = network(8), [0.35, 0.5, 0.7, 1.0]
    method, factors = gossip("ring", links, [500.0] * 4), 1 + np.random.default_rng(1).random((600, 8))
    few = replay(method, work(shares), factors[:60])
    assert not few.is_bound
    assert few.end_s[-1] == pytest.approx(replay_each(method, work(shares), factors[:60]).end_s[-1])
    wide = network(1024)
    many = replay(gossip("ring", wide, [500.0] * 4), work(shares), even(4, 1024))
    assert many.is_bound
    bound = together(method, work(shares), factors[:60])
    assert (bound.end_s[-1] <= few.end_s[-1] + 1e-9).all()
    assert bound.step_s(10) > 0.8 * few.step_s(10)


def test_where_the_wire_decides_a_step_takes_what_its_bytes_take() -> None:
    links, sizes = network(8), [700.0, 300.0, 900.0, 100.0]
    for name, copies in (("ring", 1.0), ("exp", 1.0), ("static-ring", 2.0)):
        took = replay(gossip(name, links, sizes), work([0.4, 0.6, 0.8, 1.0]), even(48, 8))
        assert took.settled_step_s(6) == pytest.approx(copies * sum(sizes) / RATE, rel=0.02), name


def test_half_the_bytes_take_half_the_time() -> None:
    links, shares = network(4), [0.4, 0.7, 1.0]
    steps = [
        replay(gossip("ring", links, [width * 1000.0] * 3), work(shares, update_s=0.0), even(24, 4)).settled_step_s(2)
        for width in (4, 2)
    ]
    assert steps[0] / steps[1] == pytest.approx(2, rel=0.01)


def test_updates_may_follow_the_backward_pass() -> None:
    schedule, links = Schedule.constant(build_topology("ring", 2, 1)), network(2)
    for follow in (False, True):
        method = GossipMethod([10.0, 10.0], [0.0, 0.0], schedule, links, updates_follow=follow)
        script = Script(method, work([0.5, 1.0]))
        kinds = [type(action).__name__[0] for step in range(2) for action in script.step(step)]
        first, second = "".join(kinds[: len(kinds) - 9]), "".join(kinds[-9:])
        assert (first, second) == (("CSSCSSC", "CWSSCWSSC") if not follow else ("CCCSSSS", "CCCWSSWSS"))


def test_kinds_take_turns_where_connections_are_shared() -> None:
    """All together and pairs by turns, at once each has half of a link, in turn the first goes first."""
    sizes, shares = [1000.0], [1.0]
    links, rounds = (
        replace(network(4), between=Link(0.0, RATE)),
        [[{"ranks": [0, 1, 2, 3]}], [{"ranks": [0, 1]}, {"ranks": [2, 3]}]],
    )
    method = gossip("custom", links, sizes * 2, rounds=rounds)
    at_once, in_turn = (
        replay_each(method, work(shares * 2, update_s=0.0), even(3, 4), kinds_take_turns=turns).end_s[:, 0]
        for turns in (False, True)
    )
    # By hand. Step 0 ends at 1 s and sends two buckets to all, 1.5 s each: through at 2.5 and 4. The first is due at
    # 2 s; then at 2.5 its pair's message begins, 1 s. In turn it waits for the second bucket until 4; at once it has
    # half of the link from 2.5 to 4.5, when the other one has 0.5 s left, for itself until 5.
    assert in_turn[1:3] == pytest.approx([1.0, 4.0])
    assert at_once[1:3] == pytest.approx([1.0, 5.0])


def in_rhythm(links: Network, sizes: Sequence[float], rhythm: Rhythm, name: str = "complete") -> Method:
    everybody = build_topology("complete", links.world_size, links.world_size)
    schedule = replace(Schedule.constant(build_topology(name, links.world_size, links.world_size)), exact=everybody)
    return GossipMethod(sizes, [0.0] * len(sizes), schedule, links, rhythm)


STEP_S = PASS_S + UPDATE_S


@BOTH
def test_local_steps_wait_for_their_average_before_the_next_pass(way: Way) -> None:
    links = network(4)
    took = way(in_rhythm(links, [2000.0], Rhythm(Fragments(1, 2), waits=True)), work([1.0]), even(6, 4))
    summed = 6 * LATENCY_S + 1.5 * 2000.0 / RATE
    expected = [STEP_S, STEP_S, STEP_S + summed, STEP_S, STEP_S + summed, STEP_S]
    assert np.diff(took.end_s[:, 0]) == pytest.approx(expected)


@BOTH
def test_the_slowest_of_an_interval_is_waited_for_once(way: Way) -> None:
    """H = 3, and another worker is twice as slow in each step: an average waits for one of them, not for three."""
    links, factors = network(2), even(7, 2)
    factors[[0, 2], 0] = factors[1, 1] = 2.0
    took = way(in_rhythm(links, [490.0], Rhythm(Fragments(1, 3), waits=True)), work([1.0]), factors)
    exchange = LATENCY_S + 490.0 / RATE
    slow, quick = 5 * PASS_S + 3 * UPDATE_S, 4 * PASS_S + 3 * UPDATE_S
    assert took.end_s[3] == pytest.approx([slow, quick])
    assert took.end_s[4] == pytest.approx(np.full(2, slow + exchange + STEP_S))
    assert took.wait_s.sum(axis=0) == pytest.approx([2 * exchange, 2 * exchange + slow - quick])


@BOTH
@pytest.mark.parametrize("num_bytes", [500.0, 1490.0])
def test_an_average_behind_the_next_step_costs_what_does_not_fit(way: Way, num_bytes: float) -> None:
    """H = 3 with overlap, on a ring: sent at the end of a step, needed at the next one's update."""
    took = way(in_rhythm(network(2), [num_bytes], Rhythm(Fragments(1, 3)), "ring"), work([1.0]), even(8, 2))
    late = max(0.0, LATENCY_S + num_bytes / RATE - PASS_S)
    expected = [STEP_S, STEP_S, STEP_S, STEP_S + late, STEP_S, STEP_S, STEP_S + late, STEP_S]
    assert np.diff(took.end_s[:, 0]) == pytest.approx(expected)


@BOTH
def test_fragments_are_under_way_behind_the_steps_of_their_delay(way: Way) -> None:
    """H = 4 in two fragments, tau = 1, messages of 1.5 s.

    The first bucket is sent at 0.5625 of the first step and needed when the third begins, 1.6875 s later. The second is
    sent at the end of the third step and needed one step, 1.125 s, later: 0.375 s too soon.
    """
    method = in_rhythm(network(2), [1490.0, 1490.0], Rhythm(Fragments(2, 4, 1), waits=True), "ring")
    took = way(method, work([0.5, 1.0]), even(13, 2))
    expected = np.full(13, STEP_S)
    expected[4::4] += 0.375
    assert np.diff(took.end_s[:, 0]) == pytest.approx(expected)
    sent = [[exchange.bucket for exchange in method.exchanges(step)] for step in range(8)]
    assert sent == [[0], [], [1], [], [0], [], [1], []]


def test_each_so_many_averages_is_one_of_all() -> None:
    """On a ring of four: pairs by turns, and everybody in each third average."""
    method = in_rhythm(network(4), [10.0], Rhythm(Fragments(1, 2), exact_every=3), "ring")
    groups = [
        [len(flow.ranks) for flow in exchange.traffic.flows] for step in range(8) for exchange in method.exchanges(step)
    ]
    assert groups == [[2, 2], [2, 2], [4], [2, 2]]


def test_what_collectives_cost() -> None:
    links = Network(4, 8, Link(1e-6, 1e11), Link(1e-5, 1e10), 2)
    everybody, node = range(32), range(8)
    size = 1e8

    def seconds(algorithm: GroupAlgorithm, ranks: Sequence[int]) -> float:
        chosen = Network(4, 8, links.within, links.between, 2, algorithm)
        return chosen.all_reduce_cost(ranks).seconds(size)

    ring = 56 * 1e-6 + 6 * 1e-5 + 2 * 31 / 32 * size / 1e10
    tree = 2 * (7 * 1e-6 + 2 * 1e-5) + 2 * size / 1e10
    two_level = 14 * 1e-6 + 6 * 1e-5 + 2 * 7 / 8 * size / 1e11 + 2 * 3 / 4 * size / 2e10
    assert seconds(GroupAlgorithm.ring, everybody) == pytest.approx(ring)
    assert seconds(GroupAlgorithm.tree, everybody) == pytest.approx(tree)
    assert seconds(GroupAlgorithm.two_level, everybody) == pytest.approx(two_level)
    assert seconds(GroupAlgorithm.auto, everybody) == pytest.approx(min(ring, tree))
    assert seconds(GroupAlgorithm.ring, node) == pytest.approx(14 * 1e-6 + 2 * 7 / 8 * size / 1e11)
    # Eight workers of each of two nodes send an eighth ... a sixteenth to each other one, twice.
    direct = links.exchange_all_cost(range(16))
    assert direct.seconds(size) == pytest.approx(2 * 1e-5 + 2 * 8 * 8 / 16 * size / 2e10)
