"""Small models, objectives and configurations for tests on workers."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from imgnet.config import AccumAdamConfig, AdamConfig, DataConfig, DataKind, OptimizerConfig, SgdConfig
from imgnet.data.loader import TrainLoader, build_train_loader
from imgnet.optim.factory import build_optimizer
from imgnet.runtime import Runtime

SGD = SgdConfig(name="sgd", lr=0.1, weight_decay=1e-3, momentum=0.9)
QUASI_GLOBAL = SgdConfig(name="sgd", lr=0.1, weight_decay=1e-3, momentum=0.9, quasi_global=True)
ADAM = AdamConfig(name="adam", lr=1e-2, weight_decay=1e-3)
ACCUM_ADAM = AccumAdamConfig(name="accum_adam", lr=1e-2, weight_decay=1e-3, accum_iter=3)
GLOBAL_BATCH = 24


class ConvNet(nn.Module):
    """Two convolutions and a linear layer, without batch norm, in several buckets of a kilobyte.

    Smooth: a ReLU lets a value pass or not by its last bit, in which sums differ whose order does, and CPUs.
    """

    def __init__(self, batch_norm: bool = False) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2)
        self.norm = nn.BatchNorm2d(8) if batch_norm else nn.Identity()
        self.second = nn.Conv2d(8, 16, 3, stride=2)
        self.last = nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        hidden = functional.silu(self.norm(self.first(images)))
        return self.last(functional.silu(self.second(hidden)).mean(dim=(2, 3)))


def make_model(seed: int = 0, batch_norm: bool = False) -> nn.Module:
    torch.manual_seed(seed)
    return ConvNet(batch_norm).to(memory_format=torch.channels_last)


def objective(module: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(module(images), targets)


def make_optimizer(config: OptimizerConfig) -> partial:
    return partial(build_optimizer, config=config)


def synthetic(num_train: int = 240, num_val: int = 359) -> DataConfig:
    return DataConfig(
        name="synthetic",
        kind=DataKind.synthetic,
        num_classes=10,
        train_px=16,
        eval_px=16,
        eval_resize_px=16,
        mean=[0.5, 0.5, 0.5],
        std=[0.25, 0.25, 0.25],
        num_train=num_train,
        num_val=num_val,
        num_workers=0,
    )


def make_loader(runtime: Runtime) -> TrainLoader:
    return build_train_loader(synthetic(), seed=3, global_batch_size=GLOBAL_BATCH, channels_last=True, worker=runtime)


def parameters_of(module: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in module.parameters()]).clone()
