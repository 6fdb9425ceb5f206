"""What cannot be tracked as a user asks, told before anything starts. Imports no torch."""

from collections.abc import Iterator
from importlib.util import find_spec

from imgnet.config import TrackingConfig, WandbMode

_LONGEST_NAME = 128


def problems(tracking: TrackingConfig) -> Iterator[str]:
    """What a tracker would refuse, one line each with the key, its value and what would be right."""
    if tracking.tensorboard and find_spec("tensorboard") is None:
        yield (
            "tracking.tensorboard=true, but tensorboard is not installed: pip install 'imgnet[tensorboard]', or leave "
            "it out"
        )
    if tracking.wandb is not WandbMode.disabled:
        yield from _problems_of_wandb(tracking)


def _problems_of_wandb(tracking: TrackingConfig) -> Iterator[str]:
    if find_spec("wandb") is None:
        yield (
            f"tracking.wandb={tracking.wandb.value}, but wandb is not installed: pip install 'imgnet[wandb]', or leave "
            "it out"
        )
    if not 0 < len(tracking.project) <= _LONGEST_NAME or any(letter in tracking.project for letter in "/\\#?%:"):
        yield f"tracking.project={tracking.project} must have 1 to {_LONGEST_NAME} letters, none of / \\ # ? % :"
    if tracking.group is not None and not 0 < len(tracking.group) <= _LONGEST_NAME:
        yield f"tracking.group={tracking.group} must have 1 to {_LONGEST_NAME} letters"
