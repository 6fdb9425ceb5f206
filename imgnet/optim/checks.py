"""What can be said against an optimizer's settings before anything is started; each in its range already."""

from collections.abc import Iterator

from imgnet.config import AccumAdamConfig, AdamConfig, OptimizerConfig, SgdConfig
from imgnet.suggest import nearest

SCHEMAS: dict[str, type[OptimizerConfig]] = {
    "sgd": SgdConfig,
    "adam": AdamConfig,
    "adamw": AdamConfig,
    "accum_adam": AccumAdamConfig,
    "accum_adamw": AccumAdamConfig,
}
"""Every update rule, and the schema of its settings."""


def problems(optimizer: OptimizerConfig, epochs: int) -> Iterator[str]:
    """Everything that is wrong, one line each with the key, its value and what would be right."""
    yield from name_problems(optimizer)
    if optimizer.min_lr > optimizer.lr:
        yield f"optimizer.min_lr={optimizer.min_lr} is above optimizer.lr={optimizer.lr}"
    if optimizer.warmup_epochs >= epochs:
        yield f"optimizer.warmup_epochs={optimizer.warmup_epochs} leaves nothing of epochs={epochs}"
    if isinstance(optimizer, SgdConfig) and optimizer.momentum == 0:
        if optimizer.nesterov:
            yield "optimizer.nesterov=true needs optimizer.momentum above 0"
        if optimizer.quasi_global:
            yield "optimizer.quasi_global=true needs optimizer.momentum above 0; without it it is plain sgd"


def name_problems(optimizer: OptimizerConfig) -> Iterator[str]:
    """A name that is no update rule, or one of a rule with other settings."""
    schema = SCHEMAS.get(optimizer.name)
    if schema is None:
        yield f"optimizer.name={optimizer.name}: there is no such optimizer; {nearest(optimizer.name, SCHEMAS)}"
    elif schema is not type(optimizer):
        alike = [name for name, known in SCHEMAS.items() if known is type(optimizer)]
        yield (
            f"optimizer.name={optimizer.name} stands among the settings of {' and '.join(alike)}, which are not its "
            f"own; choose optimizer={optimizer.name}"
        )
