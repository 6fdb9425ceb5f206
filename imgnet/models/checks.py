"""What can be said against a choice of model before anything is started. torch is not imported."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from imgnet.config import DataConfig, Mode, ModelConfig
from imgnet.models.names import OURS, library_of, pretrained_of, unknown
from imgnet.models.trial import Trial, refusal

FIXED_PX: dict[str, int] = dict.fromkeys(("vit_b_16", "vit_b_32", "vit_h_14", "vit_l_16", "vit_l_32", "maxvit_t"), 224)
"""Of torchvision's models: those that take images of one size."""
ANY_PX = (OURS, "resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
LARGEST_SMALLEST_PX = 75
"""A side that is enough for every model that takes several (torchvision's Inception needs it)."""
CLASSES_OF_TORCHVISION = 1000
"""Of all weights that torchvision publishes for classifiers."""


def problems(model: ModelConfig, data: DataConfig, mode: Mode, *, one_by_one: bool = False) -> Iterator[str]:
    """Everything that is wrong, one line each with the key, its value and what would be right.

    Args:
        model: the choice.
        data: what it is trained or scored on, each value in its range already.
        mode: what is done with it.
        one_by_one: whether a worker's forward passes in training have one image each.
    """
    if library_of(model.name) is None:
        yield unknown(model.name)
        return
    found = [*_source_problems(model, mode)]
    if not found and model.pretrained:
        found += _pretrained_problems(model.name, data.num_classes, mode)
    if not found and model.weights is not None:
        found += _file_problems(model, data.num_classes)
    foreign = not found and model.weights is not None and not _settings_of(Path(model.weights))
    sizes = {} if mode is Mode.evaluate else {"train_px": data.train_px}
    if mode is Mode.train or foreign or "eval_px" in data.keep:  # else weights bring the size that they are scored with
        sizes["eval_px"] = data.eval_px
    found += _size_problems(model.name, sizes)
    yield from found or _trial_problems(model, data.num_classes, sizes, foreign, one_by_one)


def _source_problems(model: ModelConfig, mode: Mode) -> Iterator[str]:
    """Where the first parameters come from."""
    if model.weights is None:
        if mode is Mode.evaluate and not model.pretrained:
            yield "mode=evaluate needs model.weights=<file> or model.pretrained=true"
    elif model.pretrained:
        yield f"model.pretrained=true contradicts model.weights={model.weights}; choose one"
    elif Path(model.weights).suffix != ".safetensors":
        yield f"model.weights={model.weights}: an exported model ends in .safetensors"


def _pretrained_problems(name: str, num_classes: int, mode: Mode) -> Iterator[str]:
    library = library_of(name)
    if library == "imgnet":
        yield f"model.pretrained=true: there are no published weights of {name}"
    elif library == "torchvision":
        yield from _class_problems(name, CLASSES_OF_TORCHVISION, num_classes)
    elif known := pretrained_of(name):
        if not known.exist:
            yield f"model.pretrained=true: timm publishes no weights of {name}"
        elif mode is Mode.evaluate:  # for training it replaces the last layer
            yield from _class_problems(name, known.num_classes, num_classes)


def _class_problems(name: str, published: int, num_classes: int) -> Iterator[str]:
    if published != num_classes:
        yield (
            f"model.pretrained=true: the published weights of {name} have {published} classes; "
            f"data.num_classes={num_classes}"
        )


def _file_problems(model: ModelConfig, num_classes: int) -> Iterator[str]:
    assert model.weights is not None
    try:
        settings = _settings_of(Path(model.weights))
    except OSError as error:
        yield f"model.weights={model.weights}: {error.strerror or error}"
    except (SafetensorError, ValueError) as error:
        yield f"model.weights={model.weights} is no whole safetensors file: {error}"
    else:
        for key, wanted in (("model.name", model.name), ("data.num_classes", num_classes)):
            if settings.get(key, wanted) != wanted:
                yield f"model.weights={model.weights} is of {key}={settings[key]}, not {key}={wanted}"


def _settings_of(path: Path) -> dict[str, Any]:
    """What a run noted in the header of a model that it exported; empty for a file of another origin."""
    with path.open("rb"), safe_open(path, framework="np") as file:
        about = json.loads((file.metadata() or {}).get("imgnet", "{}"))
    settings = about.get("settings") if isinstance(about, dict) else None
    return settings if isinstance(settings, dict) else {}


def _size_problems(name: str, sizes: Mapping[str, int]) -> Iterator[str]:
    own = FIXED_PX.get(name)
    for key, px in sizes.items():
        if own is not None and px != own:
            yield f"data.{key}={px}: model.name={name} takes images of {own} pixels only; set data.{key}={own}"


def _trial_problems(
    model: ModelConfig, num_classes: int, sizes: Mapping[str, int], foreign: bool, one_by_one: bool
) -> Iterator[str]:
    """What only the model itself can tell, asked where there is a doubt: it takes seconds."""
    known = pretrained_of(model.name) if library_of(model.name) == "timm" else None
    doubts = (
        any(px < LARGEST_SMALLEST_PX for px in sizes.values()) and model.name not in ANY_PX,
        known is not None and known.fixed_px and any(px != known.px for px in sizes.values()),
        foreign,
        one_by_one,  # batch norm may be left with one value
    )
    if not any(doubts):
        return
    trial = Trial(
        name=model.name,
        num_classes=num_classes,
        train_px=sizes.get("train_px"),
        num_images=1 if one_by_one else 2,
        eval_px=sizes.get("eval_px"),
        own_px=known.px if known else 299 if model.name == "inception_v3" else 224,
        weights=model.weights if foreign else None,
    )
    if line := refusal(trial):
        yield line
