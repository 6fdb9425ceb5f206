"""Where the computation of a prediction comes from: a measurement, images per second, or what was published."""

from math import isfinite
from pathlib import Path

from imgnet.config import ConfigError, RunConfig
from imgnet.plan.computation import Computation, from_images_per_s, load, profile_of

MEASUREMENTS = Path("measurements")
PUBLISHED_MODEL, PUBLISHED_PX = "resnet50", 176
PUBLISHED_IMAGES_PER_S = 1550.0
"""Of one A40 in mixed precision: 6,200 of four (arXiv 2410.11998). The shipped clusters' speeds are relative to it."""


def usual_place(config: RunConfig) -> Path:
    """Where ``imgnet measure`` writes, and a prediction looks, unless told otherwise."""
    return MEASUREMENTS / f"{config.model.name}_{config.data.train_px}px_{config.precision.value}.json"


def computation_of(config: RunConfig, measured: Path | None, images_per_s: float | None) -> Computation:
    """One worker's computation in a run, at relative speed 1.

    Args:
        config: the run.
        measured: a file of ``imgnet measure``.
        images_per_s: or of one GPU; with neither, the measurement in its usual place, or the published figure.

    Raises:
        ConfigError: what is given contradicts itself or the run, or nothing is known of the model.
    """
    if measured is not None and images_per_s is not None:
        raise ConfigError([f"--measured {measured} contradicts --images-per-s {images_per_s:g}; give one of them"])
    if images_per_s is not None:
        if not (isfinite(images_per_s) and images_per_s > 0):
            raise ConfigError([f"--images-per-s {images_per_s}: must be a number above 0"])
        about = f"{images_per_s:,.0f} images/s of one GPU, as given"
        return from_images_per_s(config.model.name, config.data.num_classes, images_per_s, about)
    if measured is not None or usual_place(config).is_file():
        return _measured(config, measured or usual_place(config))
    return _published(config)


def _measured(config: RunConfig, path: Path) -> Computation:
    computation, settings = load(path)
    wanted = {"model.name": config.model.name, "data.train_px": config.data.train_px}
    different = [
        f"{key}={settings.get(key)}, not {value}" for key, value in wanted.items() if settings.get(key) != value
    ]
    if different:
        raise ConfigError([f"{path} was measured with {' and '.join(different)}; measure that with `imgnet measure`"])
    return computation


def _published(config: RunConfig) -> Computation:
    name, px = config.model.name, config.data.train_px
    ratio = profile_of(PUBLISHED_MODEL).flops_at(PUBLISHED_PX) / profile_of(name).flops_at(px)
    images_per_s = PUBLISHED_IMAGES_PER_S * ratio
    about = f"{PUBLISHED_IMAGES_PER_S:,.0f} images/s of ResNet-50 at {PUBLISHED_PX} pixels on an A40, as published"
    if (name, px) != (PUBLISHED_MODEL, PUBLISHED_PX):
        about = f"{images_per_s:,.0f} images/s, by the work of {name} at {px} pixels, from {about}"
    return from_images_per_s(name, config.data.num_classes, images_per_s, about)
