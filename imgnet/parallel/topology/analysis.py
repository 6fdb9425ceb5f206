"""How fast a topology brings the workers together, and what it sends.

All functions take the rounds of one period and the number of workers. The deviation from the mean after rounds W_1 ..
W_T is the product of ``W_t - J`` with ``J = 1/n`` everywhere, because every W_t keeps the mean; it is computed in
this form, which stays accurate where the deviation is far below the rounding error of J itself. The product is applied
to ``I - J``. Where matrices are only column-stochastic it says what a zero-sum deviation becomes; it is zero where all
workers' values are in the proportions that push-sum divides out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from imgnet.parallel.topology.rounds import GroupRound, Matrix, Round, edges_of, mixing_matrix

EXACT = 1e-12
"""A deviation that shrinks by this factor in one round has become zero, up to rounding."""


class SpectralGap(NamedTuple):
    """1 less the factor by which the workers' deviation from their mean shrinks; 1: they agree exactly, 0: never."""

    period: float
    """``1 - |lambda_2|``, lambda_2 the second largest eigenvalue by modulus of the product of a period's matrices."""
    step: float
    """``1 - |lambda_2| ** (1 / T)`` for a period of T rounds: the geometric mean in the long run. Idle rounds count."""


def spectral_gap(rounds: Sequence[Round], world_size: int) -> SpectralGap:
    """Spectral gap of a period and of a step.

    The product of symmetric matrices need not be symmetric, so that the deviation may shrink more slowly for a few
    periods than the eigenvalue says; in the long run it shrinks by ``|lambda_2|`` in each period.
    """
    deviation = np.eye(world_size) - 1.0 / world_size
    for factor in _deviations(rounds, world_size):
        deviation = _flush(factor @ deviation, deviation)
    modulus = 0.0 if _is_nilpotent(deviation) else float(np.abs(np.linalg.eigvals(deviation)).max())
    modulus = 1.0 if modulus > 1.0 - EXACT else modulus
    return SpectralGap(1.0 - modulus, 1.0 - modulus ** (1.0 / len(rounds)))


def rounds_to_consensus(rounds: Sequence[Round], world_size: int, tol: float = EXACT) -> int | None:
    """Number of rounds, from the first of the period, after which all workers hold the mean of where they began.

    None where they only approach it: a topology that gets there in finitely many rounds at all does so within
    ``world_size`` periods. A round counts as the last where it shrinks the largest deviation to ``tol`` times what it
    was.
    """
    deviation = np.eye(world_size) - 1.0 / world_size
    if world_size == 1:
        return 0
    factors = _deviations(rounds, world_size)
    for number in range(world_size * len(rounds)):
        after = factors[number % len(rounds)] @ deviation
        if _size(after) <= tol * _size(deviation):
            return number + 1
        deviation = after / _size(after)
    return None


def _deviations(rounds: Sequence[Round], world_size: int) -> list[Matrix]:
    return [mixing_matrix(round_, world_size) - 1.0 / world_size for round_ in rounds]


def _flush(after: Matrix, before: Matrix) -> Matrix:
    """Zeros where a product is nothing but rounding."""
    return np.zeros_like(after) if _size(after) <= EXACT * _size(before) else after


def _is_nilpotent(matrix: Matrix) -> bool:
    """Whether a power of the matrix is zero. Its computed eigenvalues are not, but roots of the rounding error."""
    power = matrix
    for _ in range(max(1, (len(matrix) - 1).bit_length())):
        if not power.any():
            return True
        power = power / _size(power)
        power = _flush(power @ power, power)
    return not power.any()


def _size(matrix: Matrix) -> float:
    return float(np.abs(matrix).max())


def components(rounds: Sequence[Round], world_size: int) -> list[list[int]]:
    """Ranks that hear of one another over a period, directly or through others, in both directions."""
    hears = np.eye(world_size, dtype=bool)
    for sender, receiver in (edge for round_ in rounds for edge in edges_of(round_)):
        hears[receiver, sender] = True
    for _ in range(max(world_size - 1, 1).bit_length()):
        hears = (hears.astype(np.float32) @ hears.astype(np.float32)) > 0
    firsts = (hears & hears.T).argmax(axis=1)
    return [np.flatnonzero(firsts == first).tolist() for first in np.unique(firsts)]


def is_connected(rounds: Sequence[Round], world_size: int) -> bool:
    """Whether over a period every worker hears of every other one."""
    return len(components(rounds, world_size)) == 1


@dataclass(frozen=True)
class Traffic:
    """Bytes that each worker sends in a step, the mean over a period; float64 of shape (world_size,)."""

    within_node: Matrix
    between_nodes: Matrix


def all_reduce_bytes(num_bytes: float, num_workers: int) -> float:
    """What each of some workers sends to sum up so many bytes: in a ring ``2 (n - 1) / n`` of them.

    No algorithm gets along with less on the mean over the workers; torch does not say which one it takes.
    """
    return num_bytes * 2 * (num_workers - 1) / num_workers


def bytes_per_step(
    rounds: Sequence[Round],
    world_size: int,
    workers_per_node: int,
    num_parameters: int,
    bytes_per_value: int,
    *,
    groups_exchange_directly: bool = False,
) -> Traffic:
    """What each worker sends, under two assumptions about the collectives.

    A group of k is averaged by a ring all-reduce in the order of ranks: each member sends ``2 * (k - 1) / k`` copies
    of the parameters to the next one, the last to the first; for a pair that is one copy. With
    ``groups_exchange_directly``, as in bf16, it sends as much, but the same share to each other member. In a neighbour
    or directed round each worker sends one copy to each of its peers or receivers. What a worker receives is the same
    on the whole, not for each worker.
    """
    traffic = np.zeros((2, world_size))
    for round_ in rounds:
        for sender, receiver, copies in _copies(round_, groups_exchange_directly):
            crosses = sender // workers_per_node != receiver // workers_per_node
            traffic[int(crosses), sender] += copies
    traffic *= num_parameters * bytes_per_value / len(rounds)
    return Traffic(traffic[0], traffic[1])


def _copies(round_: Round, directly: bool) -> list[tuple[int, int, float]]:
    if not isinstance(round_, GroupRound):
        return [(rank, peer, 1.0) for rank, peer in edges_of(round_)]
    if directly:
        sizes = {rank: len(group.ranks) for group in round_.groups for rank in group.ranks}
        return [(rank, peer, 2.0 / sizes[rank]) for rank, peer in edges_of(round_)]
    return [
        (rank, group.ranks[(place + 1) % len(group.ranks)], all_reduce_bytes(1.0, len(group.ranks)))
        for group in round_.groups
        for place, rank in enumerate(group.ranks)
    ]
