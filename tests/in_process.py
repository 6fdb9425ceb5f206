"""Workers that average in one process: the transfers of a run, over a wire that is memory."""

import torch
from torch import Tensor

from imgnet.config import WireDtype
from imgnet.parallel.mixing import Mixer
from imgnet.parallel.topology import FAMILIES, Phase, Schedule, build_topology
from imgnet.parallel.wire.memory import MemoryNetwork


class Workers:
    """Every worker of a schedule, each with one block.

    Args:
        schedule: who averages with whom.
        wire_dtype: numbers in the messages.
        values: where they begin, fp32 ``[workers, values]``; changed in place.
    """

    def __init__(self, schedule: Schedule, wire_dtype: WireDtype, values: Tensor) -> None:
        network = MemoryNetwork()
        self.values = values
        mixers = [Mixer(schedule, [block], rank, wire_dtype, network.wire(rank)) for rank, block in enumerate(values)]
        self._schedule = schedule
        self._averagings = [mixer.averagings[0] for mixer in mixers]

    def mix(self, step: int) -> None:
        """The round of a step, from its beginning to its end."""
        for averaging in self._averagings:
            averaging.start(self._schedule.round_at(step))
        for averaging in self._averagings:
            averaging.finish()


def start_of(rank: int, size: int) -> Tensor:
    """Where a worker begins: values of its own."""
    return torch.randn(size, generator=torch.Generator().manual_seed(rank))


def families(world_size: int, per_node: int) -> list[tuple[str, dict]]:
    """Every family that exists for these workers, with options where it has some."""
    odd_weights = [[[rank, rank + 1, 0.1 * (1 + rank % 3)] for rank in range(world_size - 1)], []]
    uneven = [[{"ranks": list(range(world_size)), "weight": 0.7}]]
    uneven_arrows = [{"from": rank, "to": (rank + 1) % world_size, "weight": 0.3 + 0.05 * rank} for rank in range(2)]
    uneven_arrows += [{"from": rank, "to": (rank + 1) % world_size, "weight": 0.5} for rank in range(2, world_size)]
    uneven_arrows += [{"from": 1, "to": rank, "weight": 0.01} for rank in range(3, world_size)]
    found = [(name, {}) for name in FAMILIES if name not in ("custom", "alternating-exp-ring")]
    found += [("base-graph", {"max_degree": 2}), ("static-ring", {"neighbours": world_size // 2})]
    found += [("ring", {"self_weight": 0.8}), ("custom", {"rounds": odd_weights})]
    found += [("custom", {"rounds": uneven}), ("custom", {"rounds": [uneven_arrows, uneven_arrows[:1]]})]
    found += [(name, {"self_weight": 0.4}) for name in ("ring", "static-ring", "random")]
    return found + [("alternating-exp-ring", {})] * (world_size > per_node > 1)


def schedules(world_size: int, per_node: int) -> list[Schedule]:
    """One of each family, and one that goes from one to another."""
    built = [build_topology(name, world_size, per_node, **options) for name, options in families(world_size, per_node)]
    return [*map(Schedule.constant, built), Schedule((Phase(0, built[0]), Phase(2, built[1]), Phase(5, built[3])))]
