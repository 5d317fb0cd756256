"""Augmentations: each against its definition, and every draw a function of the seed alone."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from r2kd_ext.train.augment import Augment
from r2kd_ext.train.config import AugmentConfig

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
VIEWS = ("mixup", "cutmix", "cutout", "autoaugment", "cutmix_pick")


def make(size: int = 32, **options: object) -> Augment:
    return Augment(AugmentConfig(**options), size, MEAN, STD)  # type: ignore[arg-type]


def images_u8(count: int = 8, size: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    # no 0, so that black can come from padding alone
    return torch.randint(1, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


def normalised(u8: Tensor) -> Tensor:
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    return (u8.double() / 255 - mean) / std


def view_of(augment: Augment, images: Tensor, seed: int) -> Tensor:
    view = augment.view(images, seed=seed)
    assert view is not None
    return view.images


def test_standard_is_a_shift_and_a_flip_of_each_image() -> None:
    images = images_u8()
    padding = 4
    padded = torch.nn.functional.pad(images, (padding,) * 4)
    found = make().standard(images, seed=11)
    assert found.dtype == torch.float32
    draws = set()
    for index in range(len(images)):
        matches = []
        for row in range(2 * padding + 1):
            for column in range(2 * padding + 1):
                crop = padded[index, :, row : row + 32, column : column + 32]
                for flipped in (False, True):
                    expected = normalised(crop.flip(2) if flipped else crop)
                    if torch.allclose(found[index].double(), expected, atol=1e-5):
                        matches.append((row, column, flipped))
        assert len(matches) == 1, index
        draws.add(matches[0])
    assert len(draws) > 4  # drawn for each image


def test_shift_and_flip_are_uniform() -> None:
    # One bright pixel in the centre tells the shift and, as it is off centre, the flip.
    count, padding = 4000, 4
    images = torch.zeros(count, 3, 16, 16, dtype=torch.uint8)
    images[:, :, 8, 8] = 255
    found = make(16, crop_padding=padding, flip=False).standard(images, seed=5)[:, 0]
    places = found.flatten(1).argmax(1)
    for shift in (places // 16 - 8, places % 16 - 8):
        counts = torch.bincount(shift + padding, minlength=2 * padding + 1)
        assert stats.chisquare(counts.numpy()).pvalue > 1e-4
    flips = make(16, crop_padding=0).standard(images, seed=6)[:, 0].flatten(1).argmax(1) % 16
    assert set(flips.tolist()) == {7, 8}
    assert abs(float((flips == 7).double().mean()) - 0.5) < 4 * 0.5 / math.sqrt(count)


def test_resized_crop_has_the_size_and_stays_in_range() -> None:
    augment = make(40, crop="resized", crop_size=24, crop_scale=(0.3, 1.0))
    images = images_u8(6, 40)
    found = augment.standard(images, seed=3)
    assert found.shape == (6, 3, 24, 24)
    low, high = normalised(torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None])
    assert (found >= low - 1e-4).all()
    assert (found <= high + 1e-4).all()
    centre = augment.evaluation(images)
    torch.testing.assert_close(
        centre.double(), normalised(images[..., 8:32, 8:32]), atol=1e-5, rtol=0
    )


def test_mixup_is_one_convex_combination_with_a_permutation() -> None:
    images = normalised(images_u8()).float()
    augment = make(view="mixup", mixup_alpha=1.0)
    seen = []
    for seed in range(20):
        mixed = view_of(augment, images, seed)
        partners, shares = [], []
        for index in range(len(images)):
            change = (mixed[index] - images[index]).flatten().double()
            if float(change.norm()) < 1e-4:
                partners.append(index)
                continue
            errors = []
            for partner in set(range(len(images))) - {index}:
                direction = (images[partner] - images[index]).flatten().double()
                share = float(change @ direction / (direction @ direction))
                errors.append((float((change - share * direction).norm()), partner, share))
            error, partner, share = min(errors)
            assert error < 1e-3
            partners.append(partner)
            shares.append(share)
        assert sorted(partners) == list(range(len(images)))
        if shares:
            assert max(shares) - min(shares) < 1e-4  # one share for the batch
            assert 0 <= shares[0] <= 1
            seen.append(shares[0])
    assert len({round(share, 5) for share in seen}) > 15


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_mixup_draws_from_the_beta_distribution(alpha: float) -> None:
    augment = make(2, view="mixup", mixup_alpha=alpha, crop_padding=0)
    # Of two images of 0 and 1 the mixed one shows the share, unless both stay what they were.
    images = torch.stack([torch.zeros(3, 2, 2), torch.ones(3, 2, 2)])
    shares = []
    for seed in range(600):
        mixed = view_of(augment, images, seed)
        first, second = float(mixed[0, 0, 0, 0]), float(mixed[1, 0, 0, 0])
        if (first, second) != (0.0, 1.0):
            assert first + second == pytest.approx(1, abs=1e-6)
            shares.append(first)
    assert 200 < len(shares) < 400  # a permutation of two is the identity half of the time
    # Shares next to 0 or 1 round there in float32, which the test of the distribution must allow.
    inside = [share for share in shares if 1e-3 < share < 1 - 1e-3]
    ends = stats.beta(alpha, alpha).cdf([1e-3, 1 - 1e-3])

    def cdf(values: object) -> object:
        return (stats.beta(alpha, alpha).cdf(values) - ends[0]) / (ends[1] - ends[0])

    assert stats.kstest(inside, cdf).pvalue > 1e-4


def boxes_of(images: Tensor, mixed: Tensor) -> list[tuple[int, int, int, int, int]]:
    """partner, top, left, height, width of the box in each image; partner itself: no box."""
    found = []
    for index in range(len(images)):
        changed = (mixed[index] != images[index]).any(0)
        if not changed.any():
            found.append((index, 0, 0, 0, 0))
            continue
        rows, columns = changed.any(1).nonzero().flatten(), changed.any(0).nonzero().flatten()
        top, left = int(rows[0]), int(columns[0])
        height, width = int(rows[-1]) - top + 1, int(columns[-1]) - left + 1
        inside = (slice(None), slice(top, top + height), slice(left, left + width))
        partners = [
            other
            for other in range(len(images))
            if torch.equal(mixed[index][inside], images[other][inside])
        ]
        assert len(partners) == 1
        found.append((partners[0], top, left, height, width))
    return found


def test_cutmix_is_one_box_of_another_image() -> None:
    # Distinct values everywhere: a pixel that comes from another image shows.
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)) + torch.arange(
        8
    ).reshape(8, 1, 1, 1)
    augment = make(view="cutmix")
    areas, tops = [], set()
    for seed in range(300):
        boxes = boxes_of(images, view_of(augment, images, seed))
        assert sorted(box[0] for box in boxes) == list(range(8))
        places = {box[1:] for box in boxes if box[3] > 0}
        assert len(places) <= 1  # one box for the batch
        for top, left, height, width in places:
            assert height == width  # sides in the proportion of the image
            assert top + height <= 32
            assert left + width <= 32
            areas.append(height * width / 32**2)
            tops.add(top)
    # lambda ~ Beta(1, 1): the area 1 - lambda is uniform, but for the rounding down of the sides
    # by up to one pixel in 32.
    areas += [0.0] * (300 - len(areas))
    statistic = stats.kstest(areas, "uniform").statistic
    assert statistic < 1.6 / math.sqrt(300) + 2 / 32
    assert len(tops) > 15


def test_cutmix_alpha_changes_the_area() -> None:
    images = torch.arange(2.0).reshape(2, 1, 1, 1).expand(2, 3, 32, 32).contiguous()
    spread = {}
    for alpha in (0.2, 20.0):
        augment = make(view="cutmix", cutmix_alpha=alpha)
        areas = [float(view_of(augment, images, seed)[0, 0].mean()) for seed in range(200)]
        spread[alpha] = torch.tensor([area for area in areas if area > 0]).std()
    # Standard deviations of Beta(0.2, 0.2) and Beta(20, 20): 0.42 and 0.08.
    assert spread[0.2] > 0.25
    assert spread[20.0] < 0.12


def test_cutmix_pick_says_how_many_are_kept() -> None:
    images = normalised(images_u8()).float()
    picked = make(view="cutmix_pick", cutmix_pick_keep=3).view(images, seed=4)
    assert picked is not None
    assert picked.keep == 3
    assert torch.equal(picked.images, view_of(make(view="cutmix"), images, 4))


@pytest.mark.parametrize(("size", "published"), [(32, 8), (64, 16)])
def test_cutout_hole(size: int, published: int) -> None:
    images = torch.ones(500, 3, size, size)
    found = view_of(make(size, view="cutout"), images, 9)
    assert set(found.unique().tolist()) == {0.0, 1.0}
    hole = (found == 0).any(1)
    assert torch.equal(hole, (found == 0).all(1))  # all channels
    rows, columns = hole.any(2), hole.any(1)
    heights, widths = rows.sum(1), columns.sum(1)
    assert torch.equal(hole.sum((1, 2)), heights * widths)  # a rectangle
    assert heights.max() == widths.max() == published
    # The centre is uniform over the image: so much of the hole falls outside now and then.
    assert 0.5 < float((heights == published).double().mean()) < 0.95
    assert heights.min() >= published // 2
    for covered in (rows, columns):
        # Away from the edges, every line is covered equally often.
        inner = covered[:, published:-published].sum(0)
        expected = 500 * published / (size + 1)
        assert float((inner - expected).abs().max()) < 5 * math.sqrt(expected)


def test_cutout_holes_are_several_and_of_an_odd_size() -> None:
    found = view_of(
        make(32, view="cutout", cutout_holes=3, cutout_size=5), torch.ones(200, 3, 32, 32), 1
    )
    zeros = (found[:, 0] == 0).sum((1, 2))
    assert zeros.max() == 3 * 25
    assert zeros.min() > 0
    single = view_of(make(32, view="cutout", cutout_size=5), torch.ones(200, 3, 32, 32), 1)
    assert (single[:, 0] == 0).sum((1, 2)).max() == 25


def test_autoaugment_sees_images_in_0_1_and_draws_for_each() -> None:
    augment = make(32, view="autoaugment")
    images = normalised(images_u8(64)).float()
    changed = view_of(augment, images, 2)
    low, high = normalised(torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None])
    assert (changed >= low - 1e-4).all()
    assert (changed <= high + 1e-4).all()
    different = [not torch.allclose(a, b, atol=1e-4) for a, b in zip(images, changed, strict=True)]
    assert 20 < sum(different) < 64  # sub-policies have probabilities below 1

    # The same image 64 times: one draw for the batch would change all in the same way.
    same = view_of(augment, images[:1].repeat(64, 1, 1, 1), 2)
    assert len({tuple(image.flatten()[:50].tolist()) for image in same}) > 10


def test_autoaugment_posterises_as_the_policy_says() -> None:
    # ImageNet's first sub-policies posterise; few levels are left of an image with 256.
    augment = make(16, view="autoaugment", autoaugment_policy="imagenet")
    ramp = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(80, 3, 16, 16)
    changed = view_of(augment, normalised(ramp).float(), 3)
    levels = [
        len(torch.unique((image[0] * STD[0] + MEAN[0]).mul(255).round())) for image in changed
    ]
    assert min(levels) <= 128
    assert max(levels) >= 200


@pytest.mark.parametrize("view", VIEWS)
def test_draws_depend_on_the_seed_alone(view: str) -> None:
    augment = make(view=view)
    u8 = images_u8(16)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    clean = augment.standard(u8, seed=2**62 + 1)
    first = view_of(augment, clean, 2**62 + 2)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    other = make(view=view)
    other.view(clean, seed=5)  # as after another history
    assert torch.equal(other.standard(u8, seed=2**62 + 1), clean)
    assert torch.equal(view_of(other, clean, 2**62 + 2), first)
    assert not torch.equal(augment.standard(u8, seed=3), clean)
    assert not torch.equal(augment.standard(u8, seed=1), clean)  # the same low 32 bits
    assert any(not torch.equal(view_of(augment, clean, seed), first) for seed in range(3))


def test_no_view() -> None:
    assert make(view="none").view(torch.ones(2, 3, 32, 32), seed=1) is None


def test_a_crop_larger_than_the_images() -> None:
    with pytest.raises(ValueError, match=r"augment\.crop_size must be at most 32.*got 64"):
        make(32, crop="resized", crop_size=64)
