"""A classifier by its name: torchvision's, timm's, or the small one of this package."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from imgnet.config import ModelConfig
from imgnet.models.names import INCEPTIONS, library_of, unknown


class SmallCnn(nn.Module):
    """Four convolutions with batch norm and one linear layer, 0.1 million parameters, for images of 32 pixels.

    Args:
        num_classes: number of outputs.
        width: channels of the first layers; later ones have twice as many.
    """

    def __init__(self, num_classes: int, width: int = 32) -> None:
        super().__init__()
        channels = [3, width, width, 2 * width, 2 * width]
        layers: list[nn.Module] = []
        for index, (before, after) in enumerate(pairwise(channels)):
            stride = 1 if index == 2 else 2  # 32 -> 16 -> 8 -> 8 -> 4 pixels
            layers += [
                nn.Conv2d(before, after, kernel_size=3, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(inplace=True),
            ]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[n, num_classes]`` of images ``[n, 3, height, width]``."""
        return self.classifier(self.features(images).mean(dim=(2, 3)))


def build_model(
    config: ModelConfig, num_classes: int, *, device: torch.device, channels_last: bool, compiled: bool = False
) -> nn.Module:
    """A new classifier on ``device``, with fp32 parameters drawn from torch's global random state.

    Published weights (``config.pretrained``) are read from torchvision's or timm's cache, or downloaded to it.

    Raises:
        ValueError: no library knows the name, or the published weights have another number of classes.
    """
    model = _by_name(config, num_classes).to(device)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if compiled:
        model.compile()  # in place: the names of the parameters stay
    return model


def _by_name(config: ModelConfig, num_classes: int) -> nn.Module:
    match library_of(config.name):
        case "imgnet":
            if config.pretrained:
                raise ValueError("model.pretrained=true: there are no published weights of small_cnn")
            return SmallCnn(num_classes)
        case "torchvision":
            return _torchvision(config, num_classes)
        case "timm":
            import timm

            return timm.create_model(config.name, pretrained=config.pretrained, num_classes=num_classes)
        case None:
            raise ValueError(unknown(config.name))


def _torchvision(config: ModelConfig, num_classes: int) -> nn.Module:
    from torchvision.models import Inception3, get_model, get_model_weights

    is_inception = config.name in INCEPTIONS
    if not config.pretrained:
        extra = {"init_weights": True, "aux_logits": False} if is_inception else {}
        return get_model(config.name, weights=None, num_classes=num_classes, **extra)
    weights = get_model_weights(config.name)["DEFAULT"]
    published = len(weights.meta["categories"])
    if published != num_classes:
        raise ValueError(
            f"model.pretrained=true: the published weights of {config.name} have {published} classes, the data "
            f"{num_classes}"
        )
    model = get_model(config.name, weights=weights, **({"transform_input": False} if is_inception else {}))
    if isinstance(model, Inception3):
        model.aux_logits, model.AuxLogits = False, None  # as torchvision does it; said before, it is refused
    return model
