"""What every worker needs, imported once in the process that they are forked from: about 8 s of one core.

Optimizers import ``torch._dynamo`` at their first step, and decoding imports torchvision; four workers that did so one
by one would take four times as long on a machine of few cores. Nothing here starts a thread or touches a GPU.
"""

import torch._dynamo
import torch.nn.parallel
import torchvision

import imgnet.launch.workers.worker

__all__ = ["imgnet", "torch", "torchvision"]
