"""The way to average that a configuration asks for."""

from functools import partial

from imgnet.config import AdaptiveConfig, LocalStepsConfig, Merge, OuterConfig, RunConfig, StreamingConfig
from imgnet.optim.schedule import rate_of
from imgnet.parallel.averaging.adaptive import Adaptive, ConsensusFactor
from imgnet.parallel.averaging.every_step import EveryStep
from imgnet.parallel.averaging.fragments import Fragments
from imgnet.parallel.averaging.intervals import Intervals
from imgnet.parallel.averaging.local import Local
from imgnet.parallel.averaging.method import MakeMethod
from imgnet.parallel.averaging.outer import Outer
from imgnet.parallel.averaging.streaming import Streaming


def method_of(config: RunConfig, steps_per_epoch: int) -> MakeMethod:
    """What makes the method of a worker from its mixer."""
    averaging, num_steps = config.averaging, config.epochs * steps_per_epoch
    if isinstance(averaging, AdaptiveConfig):
        return partial(Adaptive, factor=consensus_factor(config, averaging, steps_per_epoch))
    if isinstance(averaging, LocalStepsConfig):
        intervals = Intervals(
            averaging.every, num_steps, round(averaging.start_epoch * steps_per_epoch),
            averaging.qsr_alpha, averaging.qsr_power, averaging.exact_every,
            round(config.optimizer.warmup_epochs * steps_per_epoch), config.optimizer.lr,
        )  # fmt: skip
        return partial(Local, intervals=intervals, overlap=averaging.overlap)
    if isinstance(averaging, OuterConfig):
        settings = {key: getattr(averaging, key) for key in ("lr", "momentum", "nesterov", "scale_by_lr")}
        return partial(Outer, intervals=Intervals(averaging.every, num_steps), **settings)
    if isinstance(averaging, StreamingConfig):
        settings = {key: getattr(averaging, key) for key in ("alpha", "lr", "momentum", "nesterov")}
        fragments = Fragments(averaging.fragments, averaging.every, averaging.delay_steps)
        by_difference = averaging.merge is Merge.delta
        return partial(Streaming, fragments=fragments, by_difference=by_difference, **settings)
    return EveryStep


def consensus_factor(config: RunConfig, averaging: AdaptiveConfig, steps_per_epoch: int) -> ConsensusFactor:
    """The share of an average that is taken in, by the step and its learning rate."""
    first_step = round(averaging.start_epoch * steps_per_epoch)
    reference = rate_of(config.optimizer, first_step, config.epochs, steps_per_epoch)
    return ConsensusFactor(averaging.min_factor, averaging.max_factor, averaging.power, first_step, reference)
