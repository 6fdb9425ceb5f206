"""Small collective operations that several modules need."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d


def agree(value: str) -> str:
    """What rank 0 says, on every rank. Collective."""
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def shared_store() -> dist.Store:
    """What the process group met through, and which all workers write to and read from."""
    return distributed_c10d._get_default_store()


def sum_over_workers(values: Sequence[float], device: torch.device) -> list[float]:
    """Sums over all workers, in float64. Collective; waits for the device."""
    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return total.tolist()


def broadcast_from_first(tensors: Sequence[Tensor]) -> None:
    """Give every worker rank 0's values, in place. Collective."""
    for tensor in tensors:
        dist.broadcast(tensor, src=0)
