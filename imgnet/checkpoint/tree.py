"""Nested state (dicts, lists, tuples, tensors, numbers, text) as tensors with names and a JSON text, and back."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

Tree: TypeAlias = Any
Spec: TypeAlias = Any
Tensors: TypeAlias = dict[str, Tensor]


def pack(tree: Tree) -> tuple[Spec, Tensors]:
    """Split nested state into what JSON can hold and tensors.

    Returns:
        The structure, and its tensors by the names that the structure refers to. Tensors are not copied.

    Raises:
        TypeError: a value of another kind.
    """
    tensors: Tensors = {}
    return _pack(tree, "", tensors), tensors


def _pack(tree: Tree, name: str, tensors: Tensors) -> Spec:
    if isinstance(tree, Tensor):
        tensors[name or "tensor"] = tree.detach()
        return {"tensor": name or "tensor"}
    if isinstance(tree, np.ndarray):
        tensors[name] = torch.from_numpy(tree)
        return {"array": name}
    if isinstance(tree, Mapping):
        return {"dict": [[key, _pack(value, _join(name, key), tensors)] for key, value in tree.items()]}
    if isinstance(tree, (list, tuple)):
        kind = "list" if isinstance(tree, list) else "tuple"
        return {kind: [_pack(value, _join(name, index), tensors) for index, value in enumerate(tree)]}
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return {"value": tree}
    raise TypeError(f"{name}: a {type(tree).__name__} cannot be kept in a checkpoint")


def _join(name: str, key: object) -> str:
    return f"{name}.{key}" if name else str(key)


def unpack(spec: Spec, tensors: Mapping[str, Tensor]) -> Tree:
    """The state that :func:`pack` split."""
    ((kind, content),) = spec.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "array":
        return tensors[content].numpy()
    if kind == "dict":
        return {key: unpack(value, tensors) for key, value in content}
    if kind == "list":
        return [unpack(value, tensors) for value in content]
    if kind == "tuple":
        return tuple(unpack(value, tensors) for value in content)
    return content
