"""Exponential graphs: a peer at distance 1, 2, 4, ... in turn."""

from collections.abc import Iterator

from imgnet.parallel.topology.families.layout import Layout, Rounds
from imgnet.parallel.topology.rounds import GroupRound, directed_round, uniform


def exp(layout: Layout) -> Rounds:
    """One-peer exponential graph: exact consensus in as many rounds as the world size has prime factors.

    For 2^k workers round i pairs the ranks that differ in bit i alone, as ``decent_dp``'s ``one-peer-exp`` does: it
    pairs each free rank r in turn with r + 2^i, which never wraps around. Otherwise ranks are written in mixed radix,
    with the prime factors ascending, and round i averages groups of ranks that differ in digit i alone: the averages
    of digits commute and together are the average of all. (One-peer exponential graphs: Ying et al., NeurIPS 2021;
    the factors: Takezawa et al., "Beyond exponential graph", NeurIPS 2023.)
    """
    groups_of_digits = digit_groups(prime_factors(layout.world_size))
    return tuple(GroupRound(tuple(map(uniform, groups))) for groups in groups_of_digits)


def digit_groups(factors: list[int]) -> Iterator[list[list[int]]]:
    """The numbers below the product of ``factors``, written in that mixed radix, lowest digit first.

    For each digit: the groups of numbers that differ in that digit alone.
    """
    size = 1
    for factor in factors:
        size *= factor
    stride = 1
    for factor in factors:
        firsts = [number for number in range(size) if number // stride % factor == 0]
        yield [[first + digit * stride for digit in range(factor)] for first in firsts]
        stride *= factor


def prime_factors(number: int) -> list[int]:
    """Prime factors with multiplicity, ascending; none for 1."""
    factors: list[int] = []
    divisor = 2
    while number > 1:
        while number % divisor == 0:
            factors.append(divisor)
            number //= divisor
        divisor += 1
    return factors


def directed_exp(layout: Layout) -> Rounds:
    """In round k each keeps half of its own and sends it 2^k ranks on, for all 2^k below the world size.

    (One-peer exponential graph of Ying et al., NeurIPS 2021, arXiv 2110.13363.) Exact consensus in log2(n) rounds where
    n is a power of two; otherwise workers only come closer.
    """
    size = layout.world_size
    distances = [2**power for power in range((size - 1).bit_length())]
    return tuple(
        directed_round(((rank, (rank + distance) % size, 0.5) for rank in range(size)), size) for distance in distances
    )
