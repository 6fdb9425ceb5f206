"""Parameters of a bucket as views of one block of memory, so that a bucket is one message."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

ALIGNMENT_BYTES = 128
"""Each parameter starts on such a boundary of its block, for vectorised copies on GPUs."""

NamedParameter = tuple[str, Parameter]


def split_into_buckets(
    named_parameters: Iterable[NamedParameter], bucket_bytes: int, at_least: int = 1
) -> list[list[NamedParameter]]:
    """Parameters in the reverse of their order of registration, which is about the order of their gradients.

    The split depends on the model alone, so that every worker, and a run that resumes, has the same buckets.

    Args:
        named_parameters: those that require a gradient.
        bucket_bytes: a bucket is closed when it holds this much.
        at_least: so many buckets, or a smaller size is taken, halved as often as it needs; at most one for each
            parameter.
    """
    ordered = list(named_parameters)
    buckets = _split(ordered, bucket_bytes)
    while len(buckets) < min(at_least, len(ordered)):
        bucket_bytes //= 2
        buckets = _split(ordered, bucket_bytes)
    return buckets


def _split(named_parameters: Sequence[NamedParameter], bucket_bytes: int) -> list[list[NamedParameter]]:
    buckets: list[list[NamedParameter]] = []
    size = bucket_bytes
    for name, parameter in reversed(named_parameters):
        if size >= bucket_bytes or parameter.dtype != buckets[-1][-1][1].dtype:
            buckets.append([])
            size = 0
        buckets[-1].append((name, parameter))
        size += parameter.numel() * parameter.element_size()
    return buckets


def flatten(parameters: Sequence[Parameter]) -> Tensor:
    """Move parameters of one dtype into one block and make them views of it, memory format kept.

    Returns:
        The block, 1-D. Padding between parameters is zero and stays so under averaging.

    Raises:
        ValueError: a parameter whose elements overlap or have gaps.
    """
    offsets, size = [], 0
    step = ALIGNMENT_BYTES // parameters[0].element_size()
    for parameter in parameters:
        offsets.append(size)
        size += -(-parameter.numel() // step) * step
    block = torch.zeros(size, dtype=parameters[0].dtype, device=parameters[0].device)
    for parameter, offset in zip(parameters, offsets, strict=True):
        if not _is_dense(parameter):
            raise ValueError(
                f"a parameter of shape {tuple(parameter.shape)}, strides {parameter.stride()} is not dense"
            )
        view = block.as_strided(parameter.size(), parameter.stride(), offset)
        view.copy_(parameter.detach())
        parameter.data = view
    return block


def _is_dense(tensor: Tensor) -> bool:
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.size(), strict=True)):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True
