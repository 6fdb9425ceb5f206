"""How much of an average is taken in, by the learning rate: pure numbers, the same on all workers."""

from dataclasses import dataclass

from imgnet.config import AveragingConfig, RunConfig
from imgnet.config.schemas import NotNegative, Share
from imgnet.optim.schedule import rate_of


@dataclass
class AdaptiveConfig(AveragingConfig):
    """Adaptive consensus: how much of an average is taken in follows the learning rate (DSGD-AC, arXiv 2602.02899)."""

    power: NotNegative = 3.0
    """``min_factor + (max_factor - min_factor) (lr / lr of start_epoch)^power`` of an average is taken in."""
    start_epoch: NotNegative = 10.0
    """Epochs in which it is ``max_factor``."""
    min_factor: Share = 0.0
    max_factor: Share = 1.0


@dataclass(frozen=True)
class ConsensusFactor:
    """``g = min + (max - min) (lr / reference_lr)^power`` from a step on, ``max`` before it and above that rate."""

    smallest: float
    largest: float
    power: float
    first_step: int
    reference_lr: float
    """The learning rate of ``first_step``."""

    def __call__(self, step: int, lr: float) -> float:
        """The share of an average that is taken in at a step of this learning rate, in [0, 1]."""
        if step < self.first_step:
            return self.largest
        return self.smallest + (self.largest - self.smallest) * min(lr / self.reference_lr, 1.0) ** self.power


def consensus_factor(averaging: AdaptiveConfig, config: RunConfig, steps_per_epoch: int) -> ConsensusFactor:
    """The share that a run asks for."""
    first_step = round(averaging.start_epoch * steps_per_epoch)
    reference = rate_of(config.optimizer, first_step, config.epochs, steps_per_epoch)
    return ConsensusFactor(averaging.min_factor, averaging.max_factor, averaging.power, first_step, reference)
