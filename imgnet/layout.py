"""How many workers a cluster holds, on how many nodes, on what."""

from dataclasses import dataclass

from imgnet.config import Accelerator, ClusterConfig, ConfigError, LocalConfig, SimulatedConfig, SlurmConfig
from imgnet.runtime import Placement, submitted, visible_gpus


@dataclass(frozen=True)
class Layout:
    """The workers of a run. ``num_nodes`` nodes of ``workers_per_node`` each, one GPU for each where ``use_gpu``."""

    num_nodes: int
    workers_per_node: int
    use_gpu: bool
    in_one_process: bool = False
    """All workers take turns, on one device."""

    @property
    def world_size(self) -> int:
        """Number of workers."""
        return self.num_nodes * self.workers_per_node

    @property
    def processes(self) -> "Layout":
        """One process for each worker, unless one stands for all."""
        return Layout(1, 1, self.use_gpu) if self.in_one_process else self


def layout_of(cluster: ClusterConfig, placement: Placement | None) -> Layout:
    """Where the workers of ``cluster`` will be; ``placement`` is what torchrun or srun already decided, if they did.

    A job that was submitted for ``cluster`` has its workers where the cluster says.

    Raises:
        ConfigError: the cluster asks for GPUs that this machine has not, or for no worker at all.
    """
    if isinstance(cluster, SlurmConfig) and (placement is None or submitted() is not None):
        return Layout(cluster.nodes, cluster.gpus_per_node, use_gpu=cluster.accelerator is not Accelerator.cpu)
    if isinstance(cluster, SimulatedConfig):
        return _simulated(cluster, placement)
    local = cluster if isinstance(cluster, LocalConfig) else LocalConfig(name=cluster.name)
    use_gpu, workers = _local_workers(local, placement)
    if placement is None:
        return Layout(1, workers, use_gpu)
    return Layout(placement.world_size // placement.local_world_size, placement.local_world_size, use_gpu)


def _simulated(cluster: SimulatedConfig, placement: Placement | None) -> Layout:
    per_node = cluster.workers_per_node or cluster.num_workers
    if cluster.num_workers % per_node:
        workers = f"the {cluster.num_workers} workers of cluster=simulated"
        raise ConfigError([f"cluster.workers_per_node={per_node} does not divide {workers}"])
    if placement is not None and placement.world_size > 1:
        raise ConfigError(["cluster=simulated is one process; start it without torchrun or srun"])
    use_gpu, _ = _local_workers(LocalConfig(name=cluster.name, accelerator=cluster.accelerator), None)
    return Layout(cluster.num_workers // per_node, per_node, use_gpu, in_one_process=True)


def _local_workers(cluster: LocalConfig, placement: Placement | None) -> tuple[bool, int]:
    gpus = visible_gpus()
    wanted = cluster.gpus_per_node
    if cluster.accelerator is Accelerator.cpu or (cluster.accelerator is Accelerator.auto and not (gpus or wanted)):
        if cluster.accelerator is Accelerator.cpu and wanted is not None:
            raise ConfigError(
                [
                    f"cluster.gpus_per_node={wanted} contradicts cluster.accelerator=cpu; "
                    "set cluster.cpu_workers_per_node instead"
                ]
            )
        return False, cluster.cpu_workers_per_node
    if placement is not None:
        wanted = placement.local_world_size
    if gpus < (wanted or 1):
        asked = f"cluster.gpus_per_node={wanted}" if wanted is not None else "cluster.accelerator=gpu"
        raise ConfigError([f"{asked}: this machine offers {gpus} GPUs; cluster.accelerator=cpu runs without"])
    return True, wanted or gpus
