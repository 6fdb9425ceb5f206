"""Write down the layers of the models in ``conf/model``, so that a prediction needs no torch: parameters and work.

``python -m imgnet.plan.profiles`` writes ``profiles.json``.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from imgnet.config import ModelConfig
from imgnet.models import build_model
from imgnet.plan.computation import NUM_CLASSES, Profile
from imgnet.rundir import write_atomically

MODELS = {"resnet18": 224, "resnet50": 224, "small_cnn": 32, "vgg16_bn": 224, "vit_b_16": 224}
"""Each with the side of the image that its work is counted for."""
FILE = Path(__file__).with_name("profiles.json")


def profile(model: nn.Module, px: int) -> Profile:
    """Count the parameters that are trained, and the work of the layers that own them, on any device."""
    device = next(model.parameters()).device
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, 3, px, px, device=device))
    flops = _own_flops(model, counter.get_flop_counts())
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    owners = [name.rpartition(".")[0] for name, _ in trained]
    shares = [flops.get(owner, 0) // owners.count(owner) for owner in owners]
    return Profile(tuple(parameter.numel() for _, parameter in trained), tuple(shares), px)


def _own_flops(model: nn.Module, counts: Mapping[str, Mapping[Any, int]]) -> dict[str, int]:
    """Of each module less those of the modules in it."""
    root = type(model).__name__
    totals = {name.removeprefix(root).removeprefix("."): sum(of.values()) for name, of in counts.items()}
    children = {
        name: [f"{name}.{child}".lstrip(".") for child, _ in module.named_children()]
        for name, module in model.named_modules()
    }
    return {
        name: totals.get(name, 0) - sum(totals.get(child, 0) for child in inner) for name, inner in children.items()
    }


def main() -> None:
    """Write the file that is part of the package."""
    profiles = {name: vars(profile(_on_meta(name), px)) for name, px in MODELS.items()}
    write_atomically(FILE, json.dumps(profiles, indent=None, separators=(",", ":")) + "\n")


def _on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return build_model(ModelConfig(name), NUM_CLASSES, device=torch.device("meta"), channels_last=False)


if __name__ == "__main__":
    main()
