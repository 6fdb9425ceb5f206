"""Learning rates as pure functions of the step."""

from math import cos, pi

from imgnet.config import OptimizerConfig


def learning_rate(
    step: int, *, lr: float, min_lr: float, warmup_steps: int, warmup_factor: float, total_steps: int
) -> float:
    """Learning rate of optimizer step 0, 1, 2, ...: a line up to ``lr``, then half a cosine down to ``min_lr``.

    Step 0 has ``warmup_factor * lr``, step ``warmup_steps`` has ``lr``, step ``total_steps`` and all later ones have
    ``min_lr``. Without warm-up steps the cosine begins at step 0; where the warm-up takes all steps there is no cosine.
    """
    if step >= total_steps:
        return min_lr
    if step < warmup_steps:
        return lr * (warmup_factor + (1.0 - warmup_factor) * step / warmup_steps)
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return min_lr + 0.5 * (lr - min_lr) * (1.0 + cos(pi * progress))


def rate_of(optimizer: OptimizerConfig, step: int, epochs: int, steps_per_epoch: int) -> float:
    """Learning rate of a step of a run with this optimizer."""
    return learning_rate(
        step,
        lr=optimizer.lr,
        min_lr=optimizer.min_lr,
        warmup_steps=round(optimizer.warmup_epochs * steps_per_epoch),
        warmup_factor=optimizer.warmup_factor,
        total_steps=epochs * steps_per_epoch,
    )
