import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import RandomResizedCrop

from imgnet.data.sampling.augment import center_boxes, crop_boxes, flips

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
sides = st.one_of(st.integers(1, 4), st.integers(1, 6000))


@given(
    seed=st.integers(0, 2**63),
    sizes=st.lists(st.tuples(sides, sides), min_size=1, max_size=20),
    scale=st.tuples(st.floats(1e-6, 1), st.floats(1e-6, 1)).map(sorted),
    ratio=st.tuples(st.floats(0.01, 100), st.floats(0.01, 100)).map(sorted),
)
def test_crops_lie_inside_the_image_and_have_pixels(seed, sizes, scale, ratio):
    widths, heights = np.array(sizes).T
    left, top, width, height = crop_boxes(seed, 3, np.arange(len(sizes)), widths, heights, scale, ratio).T
    assert (width >= 1).all()
    assert (height >= 1).all()
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (left + width <= widths).all()
    assert (top + height <= heights).all()


@given(
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 90),
    index=st.integers(0, 2**40),
    width=sides,
    height=sides,
    attempts=st.sampled_from([1, 10, 100]),
)
def test_crops_and_flips_are_those_of_a_plain_program(seed, epoch, index, width, height, attempts):
    ((*box,),) = crop_boxes(seed, epoch, [index], [width], [height], SCALE, RATIO, attempts).tolist()
    assert tuple(box) == plain_crop(seed, epoch, index, width, height, attempts)
    assert flips(seed, epoch, [index], 0.5)[0] == (plain_random(seed, epoch, index, 1) < 0.5)


@given(seed=st.integers(0, 2**63), epoch=st.integers(0, 90), cuts=st.lists(st.integers(0, 50), max_size=5))
def test_crops_and_flips_do_not_depend_on_the_batch(seed, epoch, cuts):
    generator = np.random.default_rng(seed % 1000)
    indices = generator.permutation(1_000_000)[:50]
    widths, heights = generator.integers(1, 700, (2, 50))
    boxes = crop_boxes(seed, epoch, indices, widths, heights, SCALE, RATIO)
    mirrored = flips(seed, epoch, indices, 0.5)
    edges = sorted({0, 50, *cuts})
    for start, end in itertools.pairwise(edges):
        part = slice(start, end)
        again = crop_boxes(seed, epoch, indices[part], widths[part], heights[part], SCALE, RATIO)
        assert np.array_equal(again, boxes[part])
        assert np.array_equal(flips(seed, epoch, indices[part], 0.5), mirrored[part])


def test_crops_are_written_down():
    # A published run must be repeatable with later versions of everything: these numbers may never change.
    boxes = crop_boxes(1, 2, [0, 1, 2, 1_281_166], [500] * 4, [375] * 4, SCALE, RATIO)
    assert boxes.tolist() == [[3, 132, 243, 231], [86, 15, 399, 352], [72, 0, 259, 279], [90, 14, 383, 360]]
    assert flips(1, 2, np.arange(8), 0.5).tolist() == [False, False, False, True, False, False, True, False]


def test_no_crop_of_nothing():
    assert crop_boxes(0, 0, [], [], [], SCALE, RATIO).shape == (0, 4)
    assert flips(0, 0, [], 0.5).shape == (0,)


@pytest.mark.parametrize(
    ("width", "height", "tens"), [(500, 375, 1), (375, 500, 1), (64, 64, 1), (400, 60, 1), (400, 60, 10), (600, 60, 10)]
)
def test_crops_follow_the_law_of_torchvision(width, height, tens):
    num = 4000
    sizes = np.full(num, width), np.full(num, height)
    ours = crop_boxes(11, 0, np.arange(num), *sizes, SCALE, RATIO, 10 * tens)
    theirs = np.array(torchvision_crops(num, width, height, tens))[:, [1, 0, 3, 2]]  # top, left, height, width
    for ours_values, theirs_values in (
        (ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3]),
        (ours[:, 2] / ours[:, 3], theirs[:, 2] / theirs[:, 3]),
        *((ours[:, column], theirs[:, column]) for column in range(4)),
    ):
        # Two samples of 4,000: a distance above 0.0435 has probability 0.001 at most.
        assert _distance(ours_values, theirs_values) < 0.0435


def test_more_attempts_change_central_boxes_only():
    num, wide = 2000, (600, 60)
    few, many = (
        crop_boxes(4, 1, np.arange(num), [wide[0]] * num, [wide[1]] * num, SCALE, RATIO, attempts).tolist()
        for attempts in (10, 100)
    )
    central = [260, 0, 80, 60]
    given_up = [box == central for box in few]
    assert 0.5 < np.mean(given_up) < 0.99
    assert all(box == other for box, other, was_central in zip(few, many, given_up, strict=True) if not was_central)
    assert np.mean([box == central for box in many]) < np.mean(given_up) - 0.2


def test_the_place_of_a_crop_is_uniform():
    num = 20_000
    left, _, width, _ = crop_boxes(2, 0, np.arange(num), [32] * num, [32] * num, (0.25, 0.25), (1, 1)).T
    assert set(width.tolist()) == {16}
    counts = np.bincount(left, minlength=17)
    assert ((counts - num / 17) ** 2 / (num / 17)).sum() < 45  # 16 degrees of freedom: exceeded once in 7,000


@pytest.mark.parametrize(
    ("size", "box"),
    [((1000, 10), [493, 0, 13, 10]), ((10, 1000), [0, 493, 10, 13]), ((1, 1), [0, 0, 1, 1])],
)
def test_images_that_no_try_fits_are_cut_in_the_middle(size, box):
    boxes = crop_boxes(0, 0, np.arange(20), [size[0]] * 20, [size[1]] * 20, (0.9, 1.0), RATIO)
    assert boxes.tolist() == [box] * 20


def test_flips_have_their_probability_and_differ_between_epochs():
    for probability in (0.0, 0.25, 0.5, 1.0):
        mirrored = flips(1, 0, np.arange(40_000), probability)
        assert mirrored.dtype == bool
        assert abs(mirrored.mean() - probability) < 0.012
    agreement = (flips(1, 0, np.arange(40_000), 0.5) == flips(1, 1, np.arange(40_000), 0.5)).mean()
    assert abs(agreement - 0.5) < 0.012


def test_the_flip_tells_nothing_about_the_crop():
    boxes = crop_boxes(1, 0, np.arange(20_000), [500] * 20_000, [375] * 20_000, SCALE, RATIO)
    mirrored = flips(1, 0, np.arange(20_000), 0.5)
    correlation = np.corrcoef(np.column_stack([boxes, mirrored]).T)[4, :4]
    assert np.abs(correlation).max() < 0.035


@given(width=sides, height=sides, resize_px=st.integers(1, 300), spare=st.integers(0, 100))
def test_validation_crops_are_those_of_resizing_first(width, height, resize_px, spare):
    crop_px = max(1, resize_px - spare)
    ((left, top, box_width, box_height),) = center_boxes([(width, height)], resize_px, crop_px)
    long, short = max(width, height), min(width, height)
    resized_long = int(resize_px * long / short)  # as torchvision's Resize computes it
    resized = (resize_px, resized_long) if width <= height else (resized_long, resize_px)
    corner = [round((side - crop_px) / 2.0) for side in resized]  # as torchvision's CenterCrop computes it
    assert (left * resized[0] / width, top * resized[1] / height) == pytest.approx(tuple(corner))
    assert (box_width * resized[0] / width, box_height * resized[1] / height) == pytest.approx((crop_px, crop_px))
    assert left + box_width <= width * (1 + 1e-12)
    assert top + box_height <= height * (1 + 1e-12)


def plain_random(seed, epoch, index, draw):
    """The random number of a draw, without arrays."""
    word = 0
    for number in (seed, epoch, index, draw):
        word = (word + number + 0x9E3779B97F4A7C15) % 2**64
        word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        word = (word ^ word >> 27) * 0x94D049BB133111EB % 2**64
        word = word ^ word >> 31
    return (word >> 11) / 2**53


def torchvision_crops(num, width, height, tens):
    """``[num]`` boxes of RandomResizedCrop; ten attempts in vain are followed by ten more, up to ``tens`` times."""
    image, crops = torch.empty((1, height, width)), []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        central = RandomResizedCrop.get_params(image, [2.0, 2.0], list(RATIO))  # twice the area: no attempt fits
        for _ in range(num):
            boxes = (RandomResizedCrop.get_params(image, list(SCALE), list(RATIO)) for _ in range(tens))
            crops.append(next((box for box in boxes if box != central), central))
    return crops


def plain_crop(seed, epoch, index, width, height, attempts=10):
    """RandomResizedCrop as torchvision writes it, with our random numbers."""
    for first_draw in range(2, 2 + 4 * attempts, 4):
        area, ratio, left, top = (plain_random(seed, epoch, index, first_draw + draw) for draw in range(4))
        area = width * height * (SCALE[0] + (SCALE[1] - SCALE[0]) * area)
        aspect = math.exp(math.log(RATIO[0]) + (math.log(RATIO[1]) - math.log(RATIO[0])) * ratio)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(left * (width - w + 1)), int(top * (height - h + 1)), w, h
    w, h = width, height
    if width / height < RATIO[0]:
        h = round(w / RATIO[0])
    elif width / height > RATIO[1]:
        w = round(h * RATIO[1])
    return (width - w) // 2, (height - h) // 2, w, h


def _distance(first, second):
    """Kolmogorov-Smirnov distance of two samples."""
    values = np.concatenate([first, second])
    shares = [np.searchsorted(np.sort(sample), values, side="right") / len(sample) for sample in (first, second)]
    return np.abs(shares[0] - shares[1]).max()
