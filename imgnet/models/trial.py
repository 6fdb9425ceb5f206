"""``python -m imgnet.models.trial '{...}'``: would a worker's model take these images, and these weights?

The model is built, and called, on torch's device without memory, which takes seconds. In a process of its own, because
whoever asks does without torch.
"""

import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

REFUSED = 3
_PATIENCE_S = 60


@dataclass(frozen=True)
class Trial:
    """What is tried."""

    name: str
    num_classes: int
    train_px: int | None
    """Side of the images in training; None: there are none, or they are as the model wants them."""
    num_images: int
    """Of one forward pass in training."""
    eval_px: int | None
    own_px: int
    """A side that the model takes, so that what else may fail on that device is no reason."""
    weights: str | None
    """A file that is to fit the model."""


@cache
def refusal(trial: Trial) -> str | None:
    """Why a worker's model would fail, in one line; None where it would not, or where there is no telling."""
    command = [sys.executable, "-P", "-m", "imgnet.models.trial", json.dumps(asdict(trial))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
    except subprocess.TimeoutExpired:
        return None
    return done.stdout.splitlines()[-1] if done.returncode == REFUSED else None


def carry_out(trial: Trial) -> None:
    """Build the model, read the weights, and call it. Prints what fails, and ends the process with ``REFUSED``."""
    import torch

    from imgnet.checkpoint.export import tensors_for
    from imgnet.config import ModelConfig
    from imgnet.models.build import build_model

    def call(px: int, num_images: int, *, training: bool) -> None:
        with torch.no_grad():
            model.train(training)(torch.zeros(num_images, 3, px, px, device="meta"))

    with torch.device("meta"):
        model = build_model(
            ModelConfig(name=trial.name), trial.num_classes, device=torch.device("meta"), channels_last=False
        )
    if trial.weights is not None:
        with _refused(f"model.weights={trial.weights} does not fit model.name={trial.name}"):
            tensors_for(model, Path(trial.weights))
    call(trial.own_px, 2, training=True)
    if trial.train_px is not None:
        images = "images, one at a time," if trial.num_images == 1 else "images"
        with _refused(f"model.name={trial.name} does not train on {images} of data.train_px={trial.train_px} pixels"):
            call(trial.train_px, trial.num_images, training=True)
    if trial.eval_px is not None:
        with _refused(f"model.name={trial.name} takes no images of data.eval_px={trial.eval_px} pixels"):
            call(trial.eval_px, 1, training=False)


@contextmanager
def _refused(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever a model raises, a worker would meet it too
        print(f"{what}: {' '.join(str(error).split()) or type(error).__name__}")
        sys.exit(REFUSED)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    carry_out(Trial(**json.loads(sys.argv[1])))
