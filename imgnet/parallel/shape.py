"""What is wrong with how a run is spread over its workers, told before anything starts. Imports no torch."""

from collections.abc import Iterator

from imgnet.config import Mode, RunConfig
from imgnet.config.ranges import wrong_values
from imgnet.data import checks as data
from imgnet.parallel import checks


def shape_problems(config: RunConfig, world_size: int, workers_per_node: int) -> list[str]:
    """Its batches and its topology, a line for each problem; values out of their range alone, if there are some."""
    topology = checks.problems(config, world_size, workers_per_node)
    return [*wrong_values(config).values()] or [*batch_problems(config, world_size), *topology]


def batch_problems(config: RunConfig, workers: int) -> Iterator[str]:
    """A global batch that does not divide among so many workers and their passes, or that the data do not fill."""
    batch_size, accumulation = config.global_batch_size, config.num_accumulation_steps
    if config.mode is Mode.evaluate and config.evaluate_recalibrate_bn == 0:
        return
    if batch_size < workers:
        yield (
            f"global_batch_size={batch_size} has fewer images than there are workers, {workers} (cluster="
            f"{config.cluster.name}); write global_batch_size={workers} or a multiple of it"
        )
    elif batch_size % workers:
        yield f"global_batch_size={batch_size} is not divisible by {workers} workers (cluster={config.cluster.name})"
    elif (batch_size // workers) % accumulation:
        yield (
            f"num_accumulation_steps={accumulation} does not divide the {batch_size // workers} images that each of "
            f"{workers} workers has in a step (global_batch_size={batch_size})"
        )
    else:
        yield from data.batch_problems(config.data, batch_size)
