"""Pairs drawn at random, the same on every machine."""

import numpy as np
from numpy.typing import NDArray

from imgnet.parallel.topology.analysis import is_connected
from imgnet.parallel.topology.families.layout import Layout, Rounds, refuse_below, refuse_share
from imgnet.parallel.topology.rounds import GroupRound, uniform


def random(layout: Layout, *, seed: int = 0, num_rounds: int = 64, self_weight: float | None = None) -> Rounds:
    """A perfect matching drawn anew for each of ``num_rounds`` rounds; one worker idles where their number is odd.

    (Randomised gossip: Boyd et al., 2006.) The same ``seed`` (0 or more) gives the same rounds on every machine.
    ``self_weight``, in (0, 1), is what each keeps of its own; by default 1/2.
    """
    refuse_share("random", self_weight=self_weight)
    refuse_below(1, "random", num_rounds=num_rounds)
    bits = draws("random", seed, num_rounds, layout.world_size)
    rounds = tuple(_matching(order, self_weight) for order in np.argsort(bits, axis=1, kind="stable").tolist())
    refuse_unconnected("random", rounds, layout.world_size)
    return rounds


def _matching(order: list[int], self_weight: float | None) -> GroupRound:
    pairs = sorted(sorted(order[first : first + 2]) for first in range(0, len(order), 2))
    return GroupRound(tuple(uniform(pair, self_weight) for pair in pairs))


def draws(name: str, seed: int, *shape: int) -> NDArray[np.uint64]:
    """Random numbers of 64 bits, for ever the same for a ``seed`` of 0 or more.

    numpy keeps the raw output of its bit generators, but not that of its shuffles and choices.
    """
    refuse_below(0, name, seed=seed)
    return np.random.PCG64(seed).random_raw(shape)


def refuse_unconnected(name: str, rounds: Rounds, world_size: int) -> None:
    """Raise ValueError where so few rounds were drawn that some workers never hear of one another."""
    if not is_connected(rounds, world_size):
        raise ValueError(f"topology={name} with num_rounds={len(rounds)} leaves workers unconnected; draw more rounds")
