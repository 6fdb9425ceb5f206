"""The Base-(k+1) graph: exact consensus in finitely many rounds for any number of workers and any degree.

(Takezawa, Sato, Bao, Niwa, Yamada: "Beyond exponential graph", NeurIPS 2023, arXiv 2305.11420.) The three constructions
of the paper build on one another: hyper-hypercubes for numbers without a prime factor above k + 1, the simple graph for
any number, and the graph itself, which splits off such factors first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from imgnet.parallel.topology.families.exp import digit_groups
from imgnet.parallel.topology.families.layout import Layout, Rounds, refuse_below
from imgnet.parallel.topology.rounds import Group, Round, group_round, neighbour_round, uniform


@dataclass(frozen=True)
class Draft:
    """What some workers do in a round; drafts of disjoint workers add up."""

    groups: tuple[Group, ...] = ()
    edges: tuple[tuple[int, int, float], ...] = ()
    """(rank, rank, weight), between workers that are in no group."""

    def __add__(self, other: "Draft") -> "Draft":
        return Draft(self.groups + other.groups, self.edges + other.edges)

    def round(self, world_size: int) -> Round:
        """Groups, one collective each, where nothing else is needed."""
        if not self.edges:
            return group_round(self.groups, world_size)
        within = [
            (one, other, (1.0 - group.weight) / (len(group.ranks) - 1))
            for group in self.groups
            for one in group.ranks
            for other in group.ranks
            if one < other
        ]
        return neighbour_round((*self.edges, *within), world_size)


def base_graph(layout: Layout, *, max_degree: int = 1) -> Rounds:
    """At most ``max_degree`` peers in a round, and exact consensus in at most ``2 log(n) / log(k+1) + 2`` rounds.

    With one peer, rounds are pairs, some of which keep more than half of their own. Who has no use for a round in the
    exact average pairs up with others that have none, or goes over its own again, as the authors do: that helps while
    training moves the workers apart.
    """
    refuse_below(1, "base-graph", max_degree=max_degree)
    workers = list(range(layout.world_size))
    drafts = min(_split(workers, max_degree), _simple(workers, max_degree), key=len)
    return tuple(draft.round(layout.world_size) for draft in drafts)


def _split(workers: Sequence[int], k: int) -> list[Draft]:
    """Factors up to k + 1 by a hyper-hypercube, after a simple graph for each of the parts that are left."""
    rest = _rest(len(workers), k)
    parts = [workers[first : first + rest] for first in range(0, len(workers), rest)]
    within = [_together(drafts) for drafts in zip(*(_simple(part, k) for part in parts), strict=True)]
    across = [_cube([part[place] for part in parts], k) for place in range(rest)]
    return within + [_together(drafts) for drafts in zip(*across, strict=True)]


def _together(drafts: Sequence[Draft]) -> Draft:
    return sum(drafts, Draft())


def _factors(number: int, k: int) -> list[int]:
    """Factors from 2 to k + 1, the largest first taken out and listed last."""
    found: list[int] = []
    for factor in range(k + 1, 1, -1):
        while number % factor == 0:
            found.append(factor)
            number //= factor
    return found[::-1]


def _rest(number: int, k: int) -> int:
    """What is left of a number without its factors up to k + 1."""
    for factor in _factors(number, k):
        number //= factor
    return number


def _cube(workers: Sequence[int], k: int) -> list[Draft]:
    """Hyper-hypercube: a round for each digit of the place of a worker; none for one worker."""
    return [
        Draft(tuple(uniform(workers[place] for place in places) for places in groups))
        for groups in digit_groups(_factors(len(workers), k))
    ]


class Section:
    """Workers of the simple graph: as many as one digit of n in base k + 1 says, with its power.

    Attributes:
        blocks: as many as the digit, each of a power of k + 1 workers.
        workers: those of all blocks.
        first: rounds after which all have the mean of the section.
        last: rounds after which each block has its own mean; ``first`` again where a block is one worker.
    """

    def __init__(self, blocks: list[list[int]], k: int) -> None:
        self.blocks = blocks
        self.workers = list(chain.from_iterable(blocks))
        self.first = _cube(self.workers, k)
        self.last = [_together(drafts) for drafts in zip(*(_cube(block, k) for block in blocks), strict=True)]
        self.last = self.last or self.first


def _simple(workers: Sequence[int], k: int) -> list[Draft]:
    """Simple Base-(k+1) graph: sections average, then one after the other hands its mean to all that follow it.

    A block of a section has workers enough to meet each worker of all later sections. After that its mean is that of
    all, and so is the mean of the later sections together.
    """
    if _rest(len(workers), k) == 1:
        return _cube(workers, k)
    sections = _sections(workers, k)
    start = len(sections[0].first)
    drafts = [_together([_turn(section.first, number) for section in sections]) for number in range(start)]
    for number in range(1 + len(sections[0].last)):
        # The last one hands nothing over: the others' means have reached it when its turn comes.
        done = [_turn(section.last, number - place - 1) for place, section in enumerate(sections[:-1][:number])]
        if number < len(sections) - 1:
            next_one = _hand_over(sections[number], sections[number + 1 :], k)
        else:
            next_one = _turn(sections[-1].last, number - len(sections) + 1)
        drafts.append(_together([*done, next_one]))
    return drafts


def _turn(drafts: list[Draft], number: int) -> Draft:
    return drafts[number % len(drafts)] if drafts else Draft()


def _sections(workers: Sequence[int], k: int) -> list[Section]:
    """The workers by the digits of their number in base k + 1, highest power first."""
    sections, taken, power = [], 0, 1
    while power * (k + 1) <= len(workers):
        power *= k + 1
    while taken < len(workers):
        digit = (len(workers) - taken) // power
        if digit:
            blocks = [list(workers[taken + power * place :][:power]) for place in range(digit)]
            sections.append(Section(blocks, k))
            taken += digit * power
        power //= k + 1
    return sections


def _hand_over(section: Section, later: list[Section], k: int) -> Draft:
    """Each worker of the later sections meets one of every block; those that are left over average."""
    free = [list(block) for block in section.blocks]
    size = len(section.workers)
    share = size / (size + sum(len(other.workers) for other in later))
    met = [(worker, [block.pop() for block in free]) for other in reversed(later) for worker in other.workers]
    left = list(chain.from_iterable(free))
    idle = [left[first : first + k + 1] for first in range(0, len(left), k + 1)]
    groups = tuple(uniform(ranks) for ranks in idle if len(ranks) > 1)
    if len(free) == 1:
        return Draft((*groups, *(uniform((worker, *peers), 1.0 - share) for worker, peers in met)))
    return Draft(groups, tuple((worker, peer, share / len(free)) for worker, peers in met for peer in peers))
