"""The parts of a run in which parameters are averaged over one topology in one rhythm."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from imgnet.config import ConfigError, DecentralizedConfig, RunConfig
from imgnet.parallel.averaging.registry import way_of
from imgnet.parallel.averaging.rhythm import Rhythm
from imgnet.parallel.schedule import build_schedule, exact_topology
from imgnet.parallel.topology import Schedule


@dataclass(frozen=True)
class Phase:
    """A part of a run, as if it began here."""

    schedule: Schedule
    """Of one topology."""
    rhythm: Rhythm

    def period(self, most: int) -> int:
        """Steps after which all repeats itself; without the topology's rounds where that is more than ``most``."""
        whole = self.rhythm.num_steps * len(self.schedule.phases[0].topology.rounds)
        return whole if whole <= most else self.rhythm.num_steps


def phases_of(
    config: RunConfig, world_size: int, per_node: int, steps_per_epoch: Callable[[], int]
) -> list[tuple[float, Phase]]:
    """The parts of a decentralized run in their order, each with its share of the epochs.

    Args:
        config: the run.
        world_size: its workers.
        per_node: those that the topology takes for a node.
        steps_per_epoch: asked where intervals follow the learning rate.

    Raises:
        ConfigError: nobody knows when it averages, or how long a round takes.
    """
    assert isinstance(config.topology, DecentralizedConfig)
    find = way_of(config.averaging).rhythms
    if find is None:
        raise ConfigError([f"averaging={config.averaging.name}: predictions do not know it"])
    topologies = build_schedule(config.topology, world_size, per_node, steps_per_epoch=1)
    if topologies.directed is not None:
        raise ConfigError([f"topology={topologies.directed.name}: predictions do not know directed rounds"])
    exact = exact_topology(config.averaging, world_size, per_node)
    rhythms = list(find(config.averaging, config, steps_per_epoch))
    starts = sorted({*(float(phase.first_step) for phase in topologies.phases), *(start for start, _ in rhythms)})
    found = []
    for start, end in zip(starts, [*starts[1:], float(config.epochs)], strict=True):
        one = replace(Schedule.constant(topologies.phase_at(int(start)).topology), exact=exact)
        rhythm = next(rhythm for first, rhythm in reversed(rhythms) if first <= start)
        found.append(((end - start) / config.epochs, Phase(one, rhythm)))
    return found
