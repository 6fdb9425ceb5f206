"""Who averages with whom, as pure data: no process group, no tensor, numpy only."""

from imgnet.parallel.topology.analysis import (
    SpectralGap,
    Traffic,
    all_reduce_bytes,
    bytes_per_step,
    components,
    is_connected,
    rounds_to_consensus,
    spectral_gap,
)
from imgnet.parallel.topology.period import Topology
from imgnet.parallel.topology.registry import FAMILIES, build_topology, option_names
from imgnet.parallel.topology.rounds import (
    Arrows,
    DirectedRound,
    Group,
    GroupRound,
    NeighbourRound,
    Neighbours,
    Part,
    Round,
    mixing_matrix,
)
from imgnet.parallel.topology.schedule import Phase, Schedule

__all__ = [
    "FAMILIES",
    "Arrows",
    "DirectedRound",
    "Group",
    "GroupRound",
    "NeighbourRound",
    "Neighbours",
    "Part",
    "Phase",
    "Round",
    "Schedule",
    "SpectralGap",
    "Topology",
    "Traffic",
    "all_reduce_bytes",
    "build_topology",
    "bytes_per_step",
    "components",
    "is_connected",
    "mixing_matrix",
    "option_names",
    "rounds_to_consensus",
    "spectral_gap",
]
