"""The published networks against the facts of the public checkpoints' own implementation."""

from __future__ import annotations

import pytest
import torch
from zoo import VARIANTS, facts, filled, golden_input, size_and_classes

from r2kd_ext import models

pytestmark = pytest.mark.usefixtures("one_thread")


def test_every_network_is_there() -> None:
    assert len(facts()) == 23
    assert set(models.names()) == {"digits_student", "digits_teacher", *facts()}


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_as_published(name: str, variant: str) -> None:
    """One test for all facts: to fill the weights takes as long as to compute the logits."""
    network, fact = filled(name, variant), facts()[name][variant]
    state = [[key, list(value.shape)] for key, value in network.state_dict().items()]
    assert state == fact["state_dict"]
    assert sum(p.numel() for p in network.parameters()) == fact["parameters"]
    with torch.no_grad():
        logits = network.double()(golden_input(variant))
    assert logits.shape == (2, size_and_classes(variant)[1])
    first8 = torch.tensor(fact["logits_first8"], dtype=torch.float64)
    norm = fact["logits_norm"]
    torch.testing.assert_close(logits[:, :8], first8, rtol=5.1e-9, atol=0)  # kept to 9 digits
    assert logits.sum().item() == pytest.approx(fact["logits_sum"], rel=1e-10, abs=1e-12 * norm)
    assert logits.norm().item() == pytest.approx(norm, rel=1e-11)


@pytest.mark.parametrize("name", facts())
def test_trains_on_small_images(name: str) -> None:
    """Every weight takes part, and no size but the published one is needed."""
    torch.manual_seed(0)
    network = models.create(name, 3)
    logits = network(torch.randn(2, 3, 32, 32))
    assert logits.shape == (2, 3)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
