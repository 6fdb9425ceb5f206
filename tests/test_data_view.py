"""Resizing against torchvision, to the bit, and against Pillow, which published results were made with."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import pil_to_tensor
from torchvision.transforms.v2 import functional as reference

from imgnet.config import Interpolation
from imgnet.data.sampling.view import EvalView, Resizing, TrainView, View
from imgnet.data.tools.synthesize import picture

SIZES = [(500, 375), (333, 500), (64, 90), (30, 41)]
WAYS = pytest.mark.parametrize(
    "resizing",
    [Resizing(), Resizing(Interpolation.bicubic), Resizing(antialias=False)],
    ids=["bilinear", "bicubic", "not smoothed"],
)
NO_CROP = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "flip_probability": 0.0}


def image_of(width: int, height: int) -> Image.Image:
    return picture((7, width), width, height)


def square_of(view: View, image: Tensor) -> Tensor:
    """What a back end makes of a whole image (``[3, h, w]``): the part that it decodes, cut to a square."""
    height, width = image.shape[1:]
    ((left, top, wide, high),) = view.cut(0, np.array([3]), [width], [height]).parts.tolist()
    part = image.permute(1, 2, 0)[top : top + high, left : left + wide]
    square = view.square(part)
    assert torch.equal(view.square(part.contiguous()), square)  # decoders of parts give them packed
    return square.permute(2, 0, 1)


@WAYS
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_validation_is_torchvisions_resize_and_center_crop(width: int, height: int, resizing: Resizing) -> None:
    image, way = pil_to_tensor(image_of(width, height)), InterpolationMode(resizing.interpolation.value)
    for squash, size in ((False, [60]), (True, [60, 60])):
        resized = reference.resize(image, size, way, antialias=resizing.antialias)
        view = EvalView(48, 60, squash, resizing)
        assert torch.equal(square_of(view, image), reference.center_crop(resized, [48, 48]))


@WAYS
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_training_is_torchvisions_resized_crop(width: int, height: int, resizing: Resizing) -> None:
    image, way = pil_to_tensor(image_of(width, height)), InterpolationMode(resizing.interpolation.value)
    view = TrainView(56, 1, (0.1, 0.9), (0.75, 4 / 3), 0.0, 10, resizing)
    ((left, top, wide, high),) = view.cut(0, np.array([3]), [width], [height]).parts.tolist()
    expected = reference.resized_crop(image, top, left, high, wide, [56, 56], way, antialias=resizing.antialias)
    assert torch.equal(square_of(view, image), expected)


@pytest.mark.parametrize("packed", [True, False])
def test_resizing_leaves_colours_innermost(packed: bool) -> None:
    """Else torch takes the long way through its vector code, and whoever copies the result goes by steps of a plane."""
    image = pil_to_tensor(image_of(90, 64)).permute(1, 2, 0)
    part = image.contiguous() if packed else image[2:60, 3:80]
    assert Resizing()(part, 40, 50).is_contiguous()


@pytest.mark.parametrize("interpolation", Interpolation)
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_pillow_differs_by_a_level_at_most(width: int, height: int, interpolation: Interpolation) -> None:
    image, way = image_of(width, height), Image.Resampling[interpolation.name.upper()]
    ours = square_of(EvalView(200, 200, True, Resizing(interpolation)), pil_to_tensor(image))
    difference = (ours.int() - pil_to_tensor(image.resize((200, 200), way)).int()).abs()
    assert (difference > 1).float().mean() <= 1e-4
    # Rounded between the two passes. New versions of Pillow begin with the vertical one where that is less work.
    assert (difference > 0).float().mean() <= (0.01 if (width, height) == (500, 375) else 0.3)


def test_an_image_that_is_not_smoothed_shows_only_the_pixels_it_looks_at() -> None:
    stripes = torch.zeros((3, 64, 64), dtype=torch.uint8)
    stripes[:, :, ::4] = 255
    plain, smooth = (square_of(EvalView(16, 16, resizing=Resizing(antialias=a)), stripes) for a in (False, True))
    assert plain.unique().tolist() == [0]  # bilinear looks at columns 1 and 2 of each four
    assert smooth[:, :, 1:-1].float().mean() == pytest.approx(255 / 4, abs=1)
