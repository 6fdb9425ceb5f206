"""What weights bring with them: how images were prepared for the model when it was published, or trained by a run.

``mode=evaluate`` shows a model its images as its publisher did. Training from weights takes over how pixels become
numbers and leaves the sizes to ``data``, which are the recipe's. A key that the user set is left alone.

torch is not imported here before torchvision or timm are asked: ``python -m imgnet.published NAME`` asks for others.
"""

import json
import math
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError, safe_open

from imgnet.config import ConfigError, DataConfig, Interpolation, Mode, ModelConfig, RunConfig
from imgnet.data import checks
from imgnet.models.names import INCEPTIONS

PREPROCESSING = ("eval_px", "eval_resize_px", "eval_squash", "interpolation", "antialias", "mean", "std")
"""Keys of ``data`` that say how a validation image becomes what a model is shown."""
IN_TRAINING = ("interpolation", "antialias", "mean", "std")
"""Those that weights decide for training as well."""
_PATIENCE_S = 120
_CROP_MODES = ("center", "squash")


@dataclass(frozen=True)
class Brought:
    """The preprocessing that came with weights."""

    source: str
    """Whose weights, for the user."""
    num_classes: int | None
    """None: not known before they are loaded."""
    values: dict[str, Any]
    """By keys of ``data``; some of :data:`PREPROCESSING`."""


def shown(config: RunConfig) -> DataConfig:
    """The data of a run as its model is shown them.

    Raises:
        ConfigError: there are no such weights, they have other classes, or what is kept does not go with the rest.
    """
    brought = brought_by(config.model)
    if brought is None:
        return config.data
    data = _replaced(config, brought)
    if wrong := _class_problems(config, brought) + _new_problems(config, data, brought):
        raise ConfigError(wrong)
    return data


def said(config: RunConfig) -> str | None:
    """A line that says what the weights of a run change of its data, and what they leave; None where they say nothing.

    Raises:
        ConfigError: as :func:`shown`.
    """
    data, brought = shown(config), brought_by(config.model)
    if brought is None or (data == config.data and not config.model.pretrained):
        return None
    return _line(config, data, brought)


def problems(config: RunConfig) -> list[str]:
    """What can be said before anything is started, of weights that there are (:mod:`imgnet.models.checks`).

    It takes seconds where a key is kept that may not go with those of published weights.
    """
    unknown = [key for key in config.data.keep if key not in PREPROCESSING]
    if unknown:
        return [f"data.keep names {', '.join(unknown)}; known: {', '.join(PREPROCESSING)}"]
    if config.model.pretrained and not config.data.keep:
        return []  # what a publisher wants goes together
    try:
        brought = _asked_elsewhere(config.model.name) if config.model.pretrained else brought_by(config.model)
        if brought is None:
            return []
        return _class_problems(config, brought) + _new_problems(config, _replaced(config, brought), brought)
    except ConfigError as error:
        return error.problems


def preprocessing_of(data: DataConfig) -> dict[str, Any]:
    """The values of :data:`PREPROCESSING`, as JSON holds them."""
    values = {key: getattr(data, key) for key in PREPROCESSING}
    return {key: value.name if isinstance(value, Enum) else value for key, value in values.items()}


def brought_by(model: ModelConfig) -> Brought | None:
    """What the weights of a run bring; None where it starts without, or from a file that says nothing.

    Raises:
        ConfigError: there are no such weights, or they want what is not to be had.
    """
    if model.pretrained:
        return published(model.name)
    return _noted_in(Path(model.weights)) if model.weights is not None else None


@cache
def published(name: str) -> Brought:
    """What the publisher of a model's weights scores them with. Imports torchvision or timm; downloads nothing.

    Raises:
        ConfigError: there are no such weights, or they want what is not to be had.
    """
    import torchvision

    if name in torchvision.models.list_models(module=torchvision.models):
        return _of_torchvision(name)
    return _of_timm(name)


def _of_torchvision(name: str) -> Brought:
    from torchvision.models import get_model_weights

    weights = get_model_weights(name)["DEFAULT"]
    wanted = weights.transforms()
    (px,), (resize_px,) = wanted.crop_size, wanted.resize_size
    values = {
        "eval_px": px,
        "eval_resize_px": resize_px,
        "eval_squash": False,
        "interpolation": _interpolation(name, wanted.interpolation.value),
        "antialias": bool(wanted.antialias),
        "mean": [0.5] * 3 if name in INCEPTIONS else list(wanted.mean),
        "std": [0.5] * 3 if name in INCEPTIONS else list(wanted.std),
    }
    return Brought(f"torchvision's {name} ({weights.name})", len(weights.meta["categories"]), values)


def _of_timm(name: str) -> Brought:
    import timm
    from timm.data.config import resolve_data_config

    found = timm.models.get_pretrained_cfg(name) if timm.is_model_pretrained(name) else None
    if found is None:
        raise ConfigError([f"model.pretrained=true: there are no published weights of {name}"])
    wanted = resolve_data_config(pretrained_cfg=found.to_dict())
    channels, height, width = wanted["input_size"]
    if channels != 3 or height != width or wanted["crop_mode"] not in _CROP_MODES:
        raise ConfigError(
            [
                f"model.pretrained=true: the weights of {name} want images of {channels} x {height} x {width}, cut as "
                f"{wanted['crop_mode']}; known are squares of 3 colours, cut as {' or '.join(_CROP_MODES)}"
            ]
        )
    values = {
        "eval_px": height,
        "eval_resize_px": math.floor(height / wanted["crop_pct"]),
        "eval_squash": wanted["crop_mode"] == "squash",
        "interpolation": _interpolation(name, wanted["interpolation"]),
        "antialias": True,
        "mean": list(wanted["mean"]),
        "std": list(wanted["std"]),
    }
    return Brought(f"timm's {found.architecture}.{found.tag}".rstrip("."), found.num_classes, values)


def _interpolation(name: str, wanted: str) -> Interpolation:
    try:
        return Interpolation(wanted)
    except ValueError:
        known = ", ".join(choice.name for choice in Interpolation)
        raise ConfigError([f"model.pretrained=true: the weights of {name} want {wanted}; known: {known}"]) from None


def _noted_in(path: Path) -> Brought | None:
    """What a run noted of its own images in a model that it exported."""
    try:
        with safe_open(path, framework="np") as file:
            about = json.loads((file.metadata() or {}).get("imgnet", "{}"))
    except (OSError, SafetensorError, ValueError):
        return None  # said where the model is loaded
    noted = about.get("preprocessing") if isinstance(about, Mapping) else None
    if noted is None:
        return None
    try:
        values = _typed_values(noted)
    except (OmegaConfBaseException, LookupError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError([f"model.weights={path}: the preprocessing noted in it cannot be read: {reason}"]) from None
    return Brought(f"model.weights={path}", None, values)


def _typed_values(noted: Mapping[str, Any]) -> dict[str, Any]:
    """What JSON holds of the preprocessing, with the types of the schema. Raises one of four kinds of errors."""
    values = {key: noted[key] for key in PREPROCESSING}
    if "${" in json.dumps(values):
        raise ValueError("a value refers to another")  # the file may come from anybody
    merged = OmegaConf.merge(DataConfig, values)
    assert isinstance(merged, DictConfig)
    typed = OmegaConf.to_container(OmegaConf.masked_copy(merged, list(PREPROCESSING)))
    assert isinstance(typed, dict)
    return {str(key): value for key, value in typed.items()}


@cache
def _asked_elsewhere(name: str) -> Brought | None:
    """The same as :func:`published`, from another process, so that this one does without torch; None: no answer.

    Raises:
        ConfigError: as :func:`published`.
    """
    command = [sys.executable, "-P", "-m", "imgnet.published", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, check=True)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return None
    answer = json.loads(done.stdout)
    if "problems" in answer:
        raise ConfigError(answer["problems"])
    answer["values"]["interpolation"] = Interpolation[answer["values"]["interpolation"]]
    return Brought(**answer)


def _answer(name: str) -> dict[str, Any]:
    try:
        return asdict(published(name))
    except ConfigError as error:
        return {"problems": error.problems}


def _replaced(config: RunConfig, brought: Brought) -> DataConfig:
    keys = PREPROCESSING if config.mode is Mode.evaluate else IN_TRAINING
    return replace(config.data, **{key: brought.values[key] for key in keys if key not in config.data.keep})


def _class_problems(config: RunConfig, brought: Brought) -> list[str]:
    """For training timm makes the last layer anew; scored, a last layer without weights would be noise."""
    if config.mode is not Mode.evaluate or brought.num_classes in (None, config.data.num_classes):
        return []
    asked = f"data.num_classes={config.data.num_classes}"
    return [f"model.pretrained=true: {brought.source} has {brought.num_classes} classes; {asked}"]


def _new_problems(config: RunConfig, data: DataConfig, brought: Brought) -> list[str]:
    """What is wrong with the data only since some of their values are those of weights."""
    before, after = (checks.preprocessing_problems(one) for one in (config.data, data))
    return [f"{line} (of {brought.source})" for line in after if line not in before]


def _line(config: RunConfig, data: DataConfig, brought: Brought) -> str:
    own, used = (preprocessing_of(replace(data, **values)) for values in (brought.values, {}))
    taken, kept = [], []
    for key in PREPROCESSING if config.mode is Mode.evaluate else IN_TRAINING:
        word = f"data.{key}={_typed(used[key])}"
        if key in config.data.keep:
            kept.append(word if used[key] == own[key] else f"{word} (not {_typed(own[key])})")
        else:
            taken.append(word)
    parts = [f"images as {brought.source} wants them", " ".join(taken)]
    return ": ".join(filter(None, parts)) + (f"; as you set it: {' '.join(kept)}" if kept else "")


def _typed(value: Any) -> str:
    """A value as one types it."""
    return json.dumps(value, separators=(",", ":")).strip('"')


if __name__ == "__main__":
    print(json.dumps(_answer(sys.argv[1]), default=lambda choice: choice.name))
