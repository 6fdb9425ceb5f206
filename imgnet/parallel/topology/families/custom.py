"""Rounds that a user writes down as plain lists, for example in a YAML file."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard, TypeVar

from imgnet.parallel.topology.analysis import components
from imgnet.parallel.topology.families.layout import Layout, Rounds
from imgnet.parallel.topology.rounds import (
    DirectedRound,
    Group,
    GroupRound,
    NeighbourRound,
    Round,
    directed_round,
    group_round,
    neighbour_round,
    uniform,
)
from imgnet.parallel.topology.validity import check_rank, check_round

T = TypeVar("T")
FORM = "groups {ranks: [0, 1], weight: 0.5}, edges [0, 1, 0.5] or arrows {from: 0, to: 1, weight: 0.5}"


def custom(layout: Layout, *, rounds: Sequence[Any] = ()) -> Rounds:
    """Rounds as written, each a list of one kind: groups, edges or arrows.

    A group ``{ranks: [..], weight: ..}`` without ``weight`` takes the plain mean. An edge ``[i, j, weight]`` gives both
    ranks ``weight`` of the other's parameters. An arrow ``{from: i, to: j, weight: ..}`` gives rank j ``weight`` of
    rank i's, which keeps the rest. Ranks that a round does not name idle in it; an empty list is an idle round.
    Together the rounds must connect all workers, arrows in both directions.
    """
    if not _is_list(rounds) or not rounds:
        raise ValueError("topology=custom needs topology.rounds, a list of rounds; each is a list of " + FORM)
    built = tuple(_located(f"round {number}", _round, written, layout) for number, written in enumerate(rounds))
    parts = components(built, layout.world_size)
    if len(parts) > 1:
        raise ValueError(
            f"topology=custom never connects ranks {parts[0]} with {parts[1]}; add a group, an edge or an arrow"
        )
    return built


def _round(written: object, layout: Layout) -> Round:
    if not _is_list(written):
        raise ValueError(f"{written!r} is no list; write a list of {FORM}")
    kinds = {_kind(item) for item in written}
    if len(kinds) > 1:
        raise ValueError(f"it has both {' and '.join(sorted(kinds, reverse=True))}; a round is of one kind")
    build = {"edges": _edges, "arrows": _arrows}.get(kinds.pop() if kinds else "", _groups)
    built = build(written, layout)
    check_round(built, layout.world_size)
    return built


def _kind(item: object) -> str:
    if not isinstance(item, Mapping):
        return "edges"
    return "arrows" if {"from", "to"} & set(item) else "groups"


def _groups(written: Sequence[Mapping[str, Any]], layout: Layout) -> GroupRound:
    return group_round(
        [_located(f"group {number}", _group, item) for number, item in enumerate(written)], layout.world_size
    )


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


def _arrows(written: Sequence[Mapping[str, Any]], layout: Layout) -> DirectedRound:
    arrows = [_located(f"arrow {number}", _arrow, item, layout) for number, item in enumerate(written)]
    return directed_round(arrows, layout.world_size)


def _arrow(written: Mapping[str, Any], layout: Layout) -> tuple[int, int, float]:
    sender, receiver, weight = (written.get(key) for key in ("from", "to", "weight"))
    if (
        set(written) != {"from", "to", "weight"}
        or not _is_rank(sender)
        or not _is_rank(receiver)
        or not _is_number(weight)
    ):
        raise ValueError(f"{dict(written)!r} is no arrow; write {{from: 0, to: 1, weight: 0.5}}")
    for rank in (sender, receiver):
        check_rank(rank, layout.world_size)
    return sender, receiver, float(weight)


def _located(place: str, build: Callable[..., T], *arguments: object) -> T:
    """Build one item; an error says where it stands."""
    try:
        return build(*arguments)
    except ValueError as error:
        inner = str(error)
        separator = ", " if inner.startswith(("group ", "edge ", "arrow ")) and ": " in inner else ": "
        prefix = "topology=custom, " if place.startswith("round") else ""
        raise ValueError(f"{prefix}{place}{separator}{inner}") from None


def _is_list(value: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _is_rank(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
