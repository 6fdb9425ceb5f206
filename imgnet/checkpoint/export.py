"""Models on disk, in a format that holds tensors and text only: reading one never executes code."""

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn


def export_model(path: Path, module: nn.Module, about: Mapping[str, Any]) -> None:
    """Write a model's ``state_dict`` as safetensors, which torchvision and timm load, whole or not at all.

    The same model with the same ``about`` gives the same bytes.

    Args:
        path: a file, replaced if it is there.
        module: the model.
        about: metrics and configuration, kept as JSON under ``imgnet`` in the file's own header.
    """
    export_tensors(path, {name: value.detach().cpu() for name, value in module.state_dict().items()}, about)


def export_tensors(path: Path, state: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> None:
    """The same of a ``state_dict`` on the CPU."""
    tensors = {name: value.contiguous().clone() for name, value in state.items()}
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    save_file(tensors, beside, metadata={"format": "pt", "imgnet": json.dumps(dict(about), sort_keys=True)})
    _sort_metadata(beside)
    beside.chmod(0o644)  # the library makes it private to the user
    beside.replace(path)


def _sort_metadata(path: Path) -> None:
    """Bring what is noted beside the tensors into order: the library keeps it in a hash map, new in each process."""
    with path.open("r+b") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        ordered = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        assert len(ordered) <= size, "the same text in another order"
        file.seek(8)
        file.write(ordered.ljust(size))


def read_about(path: Path) -> dict[str, Any]:
    """What :func:`export_model` noted beside the tensors; empty for a file of another origin.

    Raises:
        ValueError: not a safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return json.loads((file.metadata() or {}).get("imgnet", "{}"))
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from None


def load_model(path: Path, module: nn.Module) -> None:
    """Put an exported model's values into ``module``.

    Raises:
        ValueError: not a safetensors file, or of another model; the first differences are named.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            tensors = {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from None
    differences = _differences(module.state_dict(), tensors)
    if differences:
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise ValueError(f"{path} holds another model: {'; '.join(differences[:3])}{more}")
    module.load_state_dict(tensors)


def _differences(wanted: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> list[str]:
    lacking = [f"it lacks {name}" for name in wanted if name not in found]
    foreign = [f"it has {name}" for name in found if name not in wanted]
    shapes = [
        f"{name} is {tuple(found[name].shape)}, not {tuple(wanted[name].shape)}"
        for name in wanted
        if name in found and found[name].shape != wanted[name].shape
    ]
    return lacking + foreign + shapes
