"""Topologies by name."""

from difflib import get_close_matches
from inspect import Parameter, signature
from typing import get_args

from imgnet.parallel.topology.families.base_graph import base_graph
from imgnet.parallel.topology.families.complete import complete
from imgnet.parallel.topology.families.custom import custom
from imgnet.parallel.topology.families.drawn import random
from imgnet.parallel.topology.families.equi import directed_equi_dyn, directed_equi_static, equi_dyn, equi_static
from imgnet.parallel.topology.families.exp import directed_exp, exp
from imgnet.parallel.topology.families.lattice import grid, star, torus
from imgnet.parallel.topology.families.layout import Family, Layout
from imgnet.parallel.topology.families.nodes import alternating_exp_ring, hierarchical
from imgnet.parallel.topology.families.ring import directed_ring, ring, static_ring
from imgnet.parallel.topology.period import Topology, check_division
from imgnet.parallel.topology.rounds import idle_round

FAMILIES: dict[str, Family] = {
    "complete": complete,
    "ring": ring,
    "static-ring": static_ring,
    "exp": exp,
    "base-graph": base_graph,
    "alternating-exp-ring": alternating_exp_ring,
    "hierarchical": hierarchical,
    "random": random,
    "equi-static": equi_static,
    "equi-dyn": equi_dyn,
    "star": star,
    "grid": grid,
    "torus": torus,
    "directed-ring": directed_ring,
    "directed-exp": directed_exp,
    "directed-equi-static": directed_equi_static,
    "directed-equi-dyn": directed_equi_dyn,
    "custom": custom,
}


def build_topology(name: str, world_size: int, workers_per_node: int, **options: object) -> Topology:
    """The rounds of topology ``name`` among ``world_size`` workers, ``workers_per_node`` of them on each node.

    Args:
        name: A key of ``FAMILIES``.
        world_size: Number of workers, 1 or more; a single one never communicates, whatever the topology.
        workers_per_node: A divisor of ``world_size``. Ranks of a node are contiguous.
        options: Of the family, see its function. None means that an option is not given.

    Raises:
        ValueError: In one line what is wrong, and what would be right.
    """
    family = _family(name)
    given = {key: value for key, value in options.items() if value is not None}
    _check_options(name, given)
    check_division(world_size, workers_per_node)
    if world_size == 1:
        return Topology(name, 1, 1, (idle_round(1),))
    rounds = family(Layout(world_size, workers_per_node), **given)
    return Topology(name, world_size, workers_per_node, rounds)


def option_names(name: str) -> list[str]:
    """Options that ``build_topology`` takes for a topology, beside its name and the workers."""
    return list(_option_types(name))


def _option_types(name: str) -> dict[str, type]:
    """The type of each option, without the None that stands for its absence."""
    parameters = signature(_family(name)).parameters.values()
    options = {each.name: each.annotation for each in parameters if each.kind is Parameter.KEYWORD_ONLY}
    return {option: next(iter(get_args(kind)), kind) for option, kind in options.items()}


def _family(name: str) -> Family:
    if name not in FAMILIES:
        near = get_close_matches(name, FAMILIES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"topology={name} is unknown; {hint}known are {', '.join(sorted(FAMILIES))}")
    return FAMILIES[name]


def _check_options(name: str, options: dict[str, object]) -> None:
    types = _option_types(name)
    unknown = sorted(set(options) - set(types))
    if unknown:
        raise ValueError(f"topology={name} has no option {unknown[0]}; it has {', '.join(types) or 'none'}")
    for option, value in options.items():
        wanted = types[option]
        if wanted in (int, float) and (isinstance(value, bool) or not isinstance(value, int | wanted)):
            what = "a whole number" if wanted is int else "a number"
            raise ValueError(f"topology={name} has {option}={value}; it must be {what}")
