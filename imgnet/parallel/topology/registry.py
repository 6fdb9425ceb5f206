"""Topologies by name."""

from difflib import get_close_matches
from inspect import Parameter, signature

from imgnet.parallel.topology import families
from imgnet.parallel.topology.custom import custom
from imgnet.parallel.topology.families import Family, Layout
from imgnet.parallel.topology.rounds import Round, Topology, check_division, idle_round

FAMILIES: dict[str, Family] = {
    "complete": families.complete,
    "ring": families.ring,
    "static-ring": families.static_ring,
    "exp": families.exp,
    "alternating-exp-ring": families.alternating_exp_ring,
    "hierarchical": families.hierarchical,
    "random": families.random,
    "star": families.star,
    "grid": families.grid,
    "torus": families.torus,
    "custom": custom,
}


def build_topology(
    name: str, world_size: int, workers_per_node: int, *, every: int | None = None, **options: object
) -> Topology:
    """The rounds of topology ``name`` among ``world_size`` workers, ``workers_per_node`` of them on each node.

    Args:
        name: A key of ``FAMILIES``.
        world_size: Number of workers, 1 or more; a single one never communicates, whatever the topology.
        workers_per_node: A divisor of ``world_size``. Ranks of a node are contiguous.
        every: Average after each ``every``-th step only: that many less one idle rounds stand before each round.
        options: Of the family, see its function. None means that an option is not given.

    Raises:
        ValueError: In one line what is wrong, and what would be right.
    """
    family = _family(name)
    given = {key: value for key, value in options.items() if value is not None}
    _check_options(name, given)
    check_division(world_size, workers_per_node)
    if every is not None and every < 1:
        raise ValueError(f"topology={name} has every={every}; it must be 1 or more")
    if world_size == 1:
        return Topology(name, 1, 1, (idle_round(1),))
    rounds = family(Layout(world_size, workers_per_node), **given)
    return Topology(name, world_size, workers_per_node, _spaced(rounds, every or 1, world_size))


def option_names(name: str) -> list[str]:
    """Options that ``build_topology`` takes for a topology, beside its name and the workers."""
    parameters = signature(_family(name)).parameters.values()
    return [*(parameter.name for parameter in parameters if parameter.kind is Parameter.KEYWORD_ONLY), "every"]


def _family(name: str) -> Family:
    if name not in FAMILIES:
        near = get_close_matches(name, FAMILIES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"topology={name} is unknown; {hint}known are {', '.join(sorted(FAMILIES))}")
    return FAMILIES[name]


def _check_options(name: str, options: dict[str, object]) -> None:
    known = option_names(name)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"topology={name} has no option {unknown[0]}; it has {', '.join(known)}")


def _spaced(rounds: tuple[Round, ...], every: int, world_size: int) -> tuple[Round, ...]:
    idle = (idle_round(world_size),) * (every - 1)
    return tuple(part for round_ in rounds for part in (*idle, round_))
