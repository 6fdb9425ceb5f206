"""What cannot be profiled as a user asks. Imports no torch."""

import math
from collections.abc import Iterator

from imgnet.config import Mode, RunConfig
from imgnet.data.checks import known_num_train


def problems(config: RunConfig, steps_per_epoch: int | None = None) -> Iterator[str]:
    """Steps that the run does not have, as far as its length is known.

    Args:
        config: the run.
        steps_per_epoch: optimizer steps in an epoch; None: those of data that tell their number of images.
    """
    if (steps := config.profile.steps) == 0:
        return
    if config.mode is Mode.evaluate:
        yield f"profile.steps={steps} records steps of training, and mode=evaluate makes none"
        return
    start, num_steps = config.profile.start_step, _num_steps(config, steps_per_epoch)
    if start + steps > num_steps:
        yield (
            f"profile.steps={steps} after profile.start_step={start} needs a run of {start + steps} steps; this one "
            f"has {num_steps}"
        )


def _num_steps(config: RunConfig, steps_per_epoch: int | None) -> float:
    """Of the run; infinity where that is not known."""
    if steps_per_epoch is None and (num_train := known_num_train(config.data)) is not None:
        steps_per_epoch = num_train // config.global_batch_size
    return min(math.inf if steps_per_epoch is None else config.epochs * steps_per_epoch, config.max_steps or math.inf)
