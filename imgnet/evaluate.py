"""One pass over the validation images, under one precision policy."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional

from imgnet.config import Precision
from imgnet.data.loader import EvalLoader

AUTOCAST_DTYPES = {Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16}


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager:
    """The arithmetic of forward passes, in training and in evaluation alike; outputs may be in half precision."""
    return torch.autocast(
        device.type, dtype=AUTOCAST_DTYPES.get(precision), enabled=precision in AUTOCAST_DTYPES, cache_enabled=True
    )


@dataclass(frozen=True)
class Scores:
    """Means over all validation images. Accuracies in percent; top-5 of fewer than five classes is top-all."""

    val_loss: float
    val_acc1: float
    val_acc5: float
    num_images: int


@torch.inference_mode()
def evaluate(
    module: nn.Module, loader: EvalLoader, device: torch.device, precision: Precision, label_smoothing: float = 0.0
) -> Scores:
    """Score a model on every validation image exactly once, whatever the world size. Collective.

    The module must be the same on all workers. It is left in the mode that it came in. Workers may have different
    numbers of batches: they meet once, at the end.
    """
    was_training = module.training
    module.eval()
    totals = torch.zeros(4, dtype=torch.float64, device=device)
    for batch in loader.batches():
        with autocast(device, precision):
            logits = module(batch.images)
        totals += _score(logits.float(), batch.targets, label_smoothing)
    module.train(was_training)
    dist.all_reduce(totals)
    loss, top1, top5, count = totals.tolist()
    return Scores(loss / count, 100 * top1 / count, 100 * top5 / count, round(count))


def _score(logits: torch.Tensor, targets: torch.Tensor, label_smoothing: float) -> torch.Tensor:
    """Sums over a batch, float64 ``[4]``: loss, correct in the first, correct in the first five, images."""
    loss = functional.cross_entropy(logits, targets, reduction="sum", label_smoothing=label_smoothing)
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    correct = best == targets[:, None]
    count = torch.full_like(loss, len(targets))
    return torch.stack([loss, correct[:, 0].sum(), correct.sum(), count]).double()
