"""What one worker computes in a step: measured (``imgnet measure``), or from the images that a GPU does in a second."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib import resources
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from imgnet.config import ConfigError
from imgnet.plan.timeline.buckets import Bucket, Gradient
from imgnet.plan.timeline.script import Work
from imgnet.rundir import write_atomically

SHARE_OF_FORWARD = 1 / 3
"""Of a pass, where nothing was measured: a backward pass has twice the multiplications of a forward pass."""
FORMAT = 1
NUM_CLASSES = 1000
"""Of the models whose layers are written down."""


@dataclass(frozen=True)
class Computation:
    """One worker's passes and updates. Times in seconds, of a worker whose relative speed is 1.

    Attributes:
        about: where it comes from, for people.
        gradients: of each parameter, in the order in which the model registers them.
        fixed_s: of a pass, whatever its number of images: starting kernels, reading parameters.
        image_s: of a pass, for each image.
        update_s: of the whole model at once.
        bucket_s: what an update in buckets costs more, for each bucket.
        mixing_s: by the dtype on the wire, what taking in one average of the whole model costs.
        step_spread: standard deviation of a pass over its mean, from one step to the next.
    """

    about: str
    gradients: tuple[Gradient, ...]
    fixed_s: float
    image_s: float
    update_s: float = 0.0
    bucket_s: float = 0.0
    mixing_s: Mapping[str, float] = field(default_factory=lambda: {"fp32": 0.0, "bf16": 0.0})
    step_spread: float = 0.0

    @property
    def num_values(self) -> int:
        """Parameters of the model."""
        return sum(gradient.num_values for gradient in self.gradients)

    def pass_s(self, num_images: float) -> float:
        """A forward and a backward pass."""
        return self.fixed_s + self.image_s * num_images

    def at_speed(self, relative_speed: float) -> "Computation":
        """The same on a device that computes so many times as fast."""
        return replace(
            self,
            fixed_s=self.fixed_s / relative_speed,
            image_s=self.image_s / relative_speed,
            update_s=self.update_s / relative_speed,
            bucket_s=self.bucket_s / relative_speed,
            mixing_s={wire: seconds / relative_speed for wire, seconds in self.mixing_s.items()},
        )

    def work(self, buckets: Sequence[Bucket], num_images: float, num_passes: int, *, updated_at_once: bool) -> Work:
        """A worker's step.

        Args:
            buckets: in the order of their messages.
            num_images: in a step.
            num_passes: that it is divided into; gradients are sent in the last.
            updated_at_once: one update of the whole model, after all gradients.
        """
        one = self.pass_s(num_images / num_passes)
        ready = np.array([bucket.ready for bucket in buckets])
        shares = np.array([bucket.num_values for bucket in buckets]) / self.num_values
        extra = 0.0 if updated_at_once else self.bucket_s
        return Work((num_passes - 1 + ready) * one, num_passes * one, self.update_s * shares + extra)

    def mixing_of(self, buckets: Sequence[Bucket], wire: str) -> list[float]:
        """What taking in the average of each bucket costs."""
        return [self.mixing_s[wire] * bucket.num_values / self.num_values for bucket in buckets]


def from_images_per_s(model: str, num_classes: int, images_per_s: float, about: str) -> Computation:
    """The passes of a known model on one GPU that trains so many images in a second, with gradients as work is done.

    Raises:
        ConfigError: the model's layers are not known here.
    """
    return Computation(about, profile_of(model).gradients(num_classes), fixed_s=0.0, image_s=1.0 / images_per_s)


@dataclass(frozen=True)
class Profile:
    """The parameters of a model in the order of registration, and the work of the layers that hold them.

    Weight and bias of the last layer, which are registered last, are those of 1,000 classes.

    Attributes:
        num_values: of each parameter.
        flops: multiplications and additions of its layer in a forward pass of one image, shared by its parameters.
        px: side of the image.
    """

    num_values: tuple[int, ...]
    flops: tuple[int, ...]
    px: int

    def gradients(self, num_classes: int = NUM_CLASSES) -> tuple[Gradient, ...]:
        """Ready as the backward pass has done its work on a layer and on all that come after it."""
        work = np.array(self.flops, dtype=np.float64)
        done = np.cumsum(work[::-1])[::-1] / max(work.sum(), 1.0)
        ready = SHARE_OF_FORWARD + (1 - SHARE_OF_FORWARD) * done
        *others, weight, bias = self.num_values
        values = [*others, weight // NUM_CLASSES * num_classes, bias // NUM_CLASSES * num_classes]
        return tuple(map(Gradient, values, ready.tolist()))

    def flops_at(self, px: int) -> float:
        """Of a forward pass of one image of another size."""
        return sum(self.flops) * (px / self.px) ** 2


def profile_of(model: str) -> Profile:
    """A model by its name, as ``python -m imgnet.plan.profiles`` wrote it down.

    Raises:
        ConfigError: it is none of them.
    """
    known = _profiles()
    if model not in known:
        names = ", ".join(sorted(known))
        raise ConfigError(
            [f"model.name={model}: its layers are known only when it was measured (imgnet measure); known are {names}"]
        )
    return known[model]


@cache
def _profiles() -> dict[str, Profile]:
    written = json.loads(resources.files("imgnet.plan").joinpath("profiles.json").read_text(encoding="utf-8"))
    return {name: Profile(tuple(one["num_values"]), tuple(one["flops"]), one["px"]) for name, one in written.items()}


def save(path: Path, computation: Computation, measured: Mapping[str, Any]) -> None:
    """Write a measurement, with what was measured.

    Args:
        path: the file; it is whole, or as it was.
        computation: the result.
        measured: the settings (model, pixels, precision ...) under which it was, and on what.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    values = asdict(computation) | {"gradients": [list(gradient) for gradient in computation.gradients]}
    write_atomically(path, json.dumps({"format": FORMAT, "measured": dict(measured), "computation": values}) + "\n")


def load(path: Path) -> tuple[Computation, dict[str, Any]]:
    """What :func:`save` wrote: the computation, and the settings under which it was measured.

    Raises:
        ConfigError: there is no such file, it is none of ours, or a number in it cannot be.
    """
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
        values = dict(written["computation"])
        gradients = tuple(Gradient(int(number), float(ready)) for number, ready in values.pop("gradients"))
        computation = Computation(gradients=gradients, **values)
        _check(computation)
        return computation, dict(written["measured"])
    except FileNotFoundError:
        raise ConfigError([f"{path}: there is no such file; `imgnet measure` writes one"]) from None
    except (OSError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError([f"{path}: no measurement of `imgnet measure` ({error})"]) from None


def _check(computation: Computation) -> None:
    times = [computation.fixed_s, computation.image_s, computation.update_s, computation.bucket_s]
    times += [*computation.mixing_s.values(), computation.step_spread]
    if not all(isfinite(seconds) and seconds >= 0 for seconds in times) or computation.pass_s(1) <= 0:
        raise ValueError("its times must be finite and not negative, and those of a pass above 0")
    if not computation.gradients or not all(0 < one.ready <= 1 and one.num_values > 0 for one in computation.gradients):
        raise ValueError("each gradient must be ready after a share of the pass in (0, 1], and have values")
