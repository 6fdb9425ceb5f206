"""The network that a cluster's configuration describes, and what is wrong with that description."""

from collections.abc import Iterator

from imgnet.config import ClusterConfig, ConfigError, GroupAlgorithm, NetworkConfig
from imgnet.config.ranges import wrong_values
from imgnet.layout import Layout
from imgnet.plan.timeline.network import Link, Network

BYTES_PER_GBIT = 1e9 / 8


def network_of(cluster: ClusterConfig, layout: Layout) -> Network:
    """The links between the workers of a run.

    Raises:
        ConfigError: one line for each number that is missing or cannot be.
    """
    problems = list(_problems(cluster, layout))
    if problems:
        raise ConfigError(problems)
    described = cluster.network
    between = _link(described.between_gbit_s, described.between_latency_us)
    within = _link(described.within_gbit_s, described.within_latency_us)
    return Network(
        layout.num_nodes,
        layout.workers_per_node,
        within=within or between,
        between=between or within,
        nics_per_node=described.nics_per_node,
        # On a CPU gloo carries the messages.
        all_reduce=described.all_reduce if layout.use_gpu else GroupAlgorithm.ring,
        kinds_take_turns=not layout.use_gpu,
    )


def _link(gbit_s: float | None, latency_us: float) -> Link:
    if gbit_s is None:  # there is nobody to send to
        return Link(0.0, BYTES_PER_GBIT)
    return Link(latency_us * 1e-6, gbit_s * BYTES_PER_GBIT)


def _problems(cluster: ClusterConfig, layout: Layout) -> Iterator[str]:
    described = cluster.network
    if layout.num_nodes > 1:
        yield from _bandwidth(cluster, "between_gbit_s", "one network interface of a node", 100)
    if layout.workers_per_node > 1:
        yield from _bandwidth(cluster, "within_gbit_s", "one worker to another on its node", 200)
    yield from wrong_values(described, "cluster.network").values()


def _bandwidth(cluster: ClusterConfig, key: str, of: str, example: int) -> Iterator[str]:
    if getattr(cluster.network, key) is None:
        yield (
            f"cluster={cluster.name} does not say what its network carries; write "
            f"cluster.network.{key}={example} (Gbit/s of {of}), or measure it with `imgnet measure --network`"
        )


def described(network: NetworkConfig) -> bool:
    """Whether anything is said of the links."""
    return network.between_gbit_s is not None or network.within_gbit_s is not None
