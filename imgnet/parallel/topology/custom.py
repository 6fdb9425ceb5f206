"""Rounds that a user writes down as plain lists, for example in a YAML file."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard, TypeVar

from imgnet.parallel.topology.analysis import components
from imgnet.parallel.topology.families import Layout, Rounds
from imgnet.parallel.topology.rounds import (
    Group,
    GroupRound,
    NeighbourRound,
    Round,
    check_rank,
    check_round,
    neighbour_round,
    uniform,
)

T = TypeVar("T")
FORM = "groups {ranks: [0, 1], weight: 0.5} or edges [0, 1, 0.5]"


def custom(layout: Layout, *, rounds: Sequence[Any] = ()) -> Rounds:
    """Rounds as written: each a list of groups ``{ranks: [..], weight: ..}`` or a list of edges ``[i, j, weight]``.

    A group without ``weight`` takes the plain mean. Ranks that a round does not name idle in it; an empty list is an
    idle round. An edge gives both ranks ``weight`` of the other's parameters. Together the rounds must connect all
    workers.
    """
    if not _is_list(rounds) or not rounds:
        raise ValueError("topology=custom needs topology.rounds, a list of rounds; each is a list of " + FORM)
    built = tuple(_located(f"round {number}", _round, written, layout) for number, written in enumerate(rounds))
    parts = components(built, layout.world_size)
    if len(parts) > 1:
        raise ValueError(f"topology=custom never connects ranks {parts[0]} with {parts[1]}; add a group or an edge")
    return built


def _round(written: object, layout: Layout) -> Round:
    if not _is_list(written):
        raise ValueError(f"{written!r} is no list; write a list of {FORM}")
    of_groups = [isinstance(item, Mapping) for item in written]
    if any(of_groups) and not all(of_groups):
        raise ValueError("it has both groups and edges; a round is one or the other")
    built = _edges(written, layout) if written and not any(of_groups) else _groups(written, layout)
    check_round(built, layout.world_size)
    return built


def _groups(written: Sequence[Mapping[str, Any]], layout: Layout) -> GroupRound:
    groups = [_located(f"group {number}", _group, item) for number, item in enumerate(written)]
    named = {rank for group in groups for rank in group.ranks}
    return GroupRound((*groups, *(uniform([rank]) for rank in range(layout.world_size) if rank not in named)))


def _group(written: Mapping[str, Any]) -> Group:
    unknown = sorted(set(written) - {"ranks", "weight"})
    if unknown:
        raise ValueError(f"key {unknown[0]!r} is unknown; the keys are ranks and weight")
    ranks = written.get("ranks")
    if not _is_list(ranks) or not ranks or not all(_is_rank(rank) for rank in ranks):
        raise ValueError(f"ranks={ranks!r} must be a list of one or more whole numbers")
    weight = written.get("weight")
    if weight is None:
        return uniform(ranks)
    if not _is_number(weight):
        raise ValueError(f"weight={weight!r} must be a number")
    return Group(tuple(sorted(ranks)), float(weight))


def _edges(written: Sequence[Any], layout: Layout) -> NeighbourRound:
    edges = [_located(f"edge {number}", _edge, item, layout) for number, item in enumerate(written)]
    pairs = [(one, other) for one, other, _ in edges]
    twice = next((pair for pair in pairs if pairs.count(pair) > 1), None)
    if twice:
        raise ValueError(f"edge {list(twice)} is listed twice; add up the weights instead")
    return neighbour_round(edges, layout.world_size)


def _edge(written: object, layout: Layout) -> tuple[int, int, float]:
    if not _is_list(written) or len(written) != 3 or not all(map(_is_rank, written[:2])) or not _is_number(written[2]):
        raise ValueError(f"{written!r} is neither a group nor an edge; write {FORM}")
    one, other = sorted(written[:2])
    for rank in (one, other):
        check_rank(rank, layout.world_size)
    if one == other:
        raise ValueError(f"rank {one} is its own peer; what a rank keeps is 1 less its weights, and is not listed")
    return one, other, float(written[2])


def _located(place: str, build: Callable[..., T], *arguments: object) -> T:
    """Build one item; an error says where it stands."""
    try:
        return build(*arguments)
    except ValueError as error:
        inner = str(error)
        separator = ", " if inner.startswith(("group ", "edge ")) and ": " in inner else ": "
        prefix = "topology=custom, " if place.startswith("round") else ""
        raise ValueError(f"{prefix}{place}{separator}{inner}") from None


def _is_list(value: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _is_rank(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
