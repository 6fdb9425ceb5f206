"""An optimizer's state put back after it was on disk."""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


def restore_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """``optimizer.load_state_dict``, with every tensor in the memory layout and on the device where it was.

    On disk tensors have no strides. torch's fused kernels walk through parameters and moments side by side and take
    for granted that their strides agree; a channels_last parameter with contiguous moments would be updated wrong.
    """
    optimizer.load_state_dict(state)
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.ndim > 0 and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    for group in optimizer.param_groups:
        device = group["params"][0].device
        for name, value in group.items():
            if isinstance(value, Tensor):
                group[name] = value.to(device)
