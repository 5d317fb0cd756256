"""Corruptions against their definitions."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor

from r2kd_ext.train.corruptions import SEVERITIES, STRENGTHS, corrupt


def images(count: int = 6, size: int = 32) -> Tensor:
    """Smooth images with an edge, as photographs are, away from black and white."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(count, 3, 5, 5, generator=generator) * 120 + 60
    smooth = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
    smooth[..., : size // 2] += 20
    return smooth.round().to(torch.uint8)


def apply(name: str, severity: int, given: Tensor, seed: int = 1) -> Tensor:
    found = corrupt(given, name, severity, seed=seed, indices=range(len(given)))
    assert (found.dtype, found.shape) == (torch.uint8, given.shape)
    return found


@pytest.mark.parametrize("name", STRENGTHS)
def test_severity_rises(name: str) -> None:
    given = images()
    errors = [
        float((apply(name, severity, given).double() - given).abs().mean())
        for severity in range(1, SEVERITIES + 1)
    ]
    assert errors == sorted(errors)
    assert errors[0] > 0.3
    assert errors[2] > 1.3 * errors[0]


@pytest.mark.parametrize("name", STRENGTHS)
def test_an_image_is_changed_the_same_in_every_batch(name: str) -> None:
    given = images()
    together = apply(name, 2, given)
    for index in (0, 4):
        alone = corrupt(given[index : index + 1], name, 2, seed=1, indices=[index])
        assert torch.equal(alone[0], together[index])
    random = name.endswith("noise")
    assert torch.equal(apply(name, 2, given, seed=2), together) != random
    # Two equal images at different places are not corrupted by the same numbers.
    twice = apply(name, 2, given[:1].repeat(2, 1, 1, 1))
    assert torch.equal(twice[0], twice[1]) != random


def test_the_generator_stays_as_it_was() -> None:
    before = torch.get_rng_state()
    for name in STRENGTHS:
        apply(name, 1, images(1))
    assert torch.equal(torch.get_rng_state(), before)


def grey(value: int, count: int = 8) -> Tensor:
    return torch.full((count, 3, 64, 64), value, dtype=torch.uint8)


def test_gaussian_noise() -> None:
    for severity, deviation in enumerate(STRENGTHS["gaussian_noise"], 1):
        noise = apply("gaussian_noise", severity, grey(128)).double() - 128
        assert float(noise.mean()) == pytest.approx(0, abs=0.5)
        assert float(noise.std()) == pytest.approx(255 * deviation, rel=0.02)


def test_shot_noise() -> None:
    for severity, photons in enumerate(STRENGTHS["shot_noise"], 1):
        noisy = apply("shot_noise", severity, grey(102)).double() / 255  # 0.4
        assert float(noisy.mean()) == pytest.approx(0.4, rel=0.01)
        # of a Poisson count with mean 0.4 photons; rounding to bytes adds little
        assert float(noisy.var()) == pytest.approx(0.4 / photons, rel=0.05)


def test_impulse_noise() -> None:
    for severity, share in enumerate(STRENGTHS["impulse_noise"], 1):
        found = apply("impulse_noise", severity, grey(77))
        assert set(found.unique().tolist()) == {0, 77, 255}
        for value in (0, 255):
            assert float((found == value).double().mean()) == pytest.approx(share / 2, rel=0.1)


def test_gaussian_blur() -> None:
    given = images(2, 64)
    found = apply("gaussian_blur", 3, given).double()
    sigma = STRENGTHS["gaussian_blur"][2] * 64 / 32
    expected = gaussian_filter(given.double().numpy(), (0, 0, sigma, sigma), mode="mirror")
    assert np.abs(found.numpy() - expected).max() < 1


def test_brightness_and_contrast() -> None:
    given = images()
    x = given.double() / 255
    for severity in range(1, SEVERITIES + 1):
        added = STRENGTHS["brightness"][severity - 1]
        expected = ((x + added).clamp(0, 1) * 255).round()
        assert (apply("brightness", severity, given).double() - expected).abs().max() <= 1
        factor = STRENGTHS["contrast"][severity - 1]
        found = apply("contrast", severity, given).double() / 255
        torch.testing.assert_close(found.mean((2, 3)), x.mean((2, 3)), atol=2e-3, rtol=0)
        torch.testing.assert_close(found.std((2, 3)), factor * x.std((2, 3)), atol=2e-3, rtol=0)


def test_pixelate() -> None:
    found = apply("pixelate", 3, images(2, 20))  # 0.4: 8 pixels on a side
    for image in found:
        for rows in (image, image.transpose(1, 2)):
            different = (rows[:, 1:] != rows[:, :-1]).any(2).any(0)
            assert int(different.sum()) == 7


def test_jpeg_is_that_of_the_codec() -> None:
    given = images(1)
    buffer = io.BytesIO()
    pixels = given[0].permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=int(STRENGTHS["jpeg"][1]))
    expected = np.asarray(Image.open(buffer))
    assert np.array_equal(apply("jpeg", 2, given)[0].permute(1, 2, 0).numpy(), expected)


def test_what_is_not_there() -> None:
    with pytest.raises(ValueError, match=r"name must be one of gaussian_noise, .*got 'fog'"):
        apply("fog", 1, images(1))
    with pytest.raises(ValueError, match=r"severity must be in 1, \.\.\., 3, got 0"):
        apply("jpeg", 0, images(1))
