"""R2KD in a plain PyTorch loop, on scikit-learn's digits; downloads nothing.

python examples/plain_loop.py
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from r2kd_ext import CorrelationKDLoss, TeacherEnsemble

TEST = 500  # images


def network(width: int) -> nn.Module:
    """A convolutional network for 8 x 8 images."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, 10),
    )


def view_of(images: Tensor) -> Tensor:
    """The augmented view: mixup with one share for the batch."""
    share = float(torch.distributions.Beta(0.2, 0.2).sample())
    return share * images + (1 - share) * images[torch.randperm(len(images))]


def fit(
    student: nn.Module,
    images: Tensor,
    labels: Tensor,
    epochs: int,
    teacher: TeacherEnsemble | None = None,
) -> None:
    """Train `student`, with the help of `teacher` where there is one."""
    criterion = CorrelationKDLoss.r2kd()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    student.train()
    for _ in range(epochs):
        for part in torch.randperm(len(images)).split(64):
            clean = images[part]
            logits = student(clean)
            loss = F.cross_entropy(logits, labels[part])
            if teacher is not None:
                view = view_of(clean)
                on_clean, on_view = teacher.both(clean, view)
                loss = loss + criterion(logits, on_clean) + criterion(student(view), on_view)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    return float((network.eval()(images).argmax(1) == labels).double().mean())


def main(epochs: int) -> dict[str, float]:
    """Train a teacher, a student without it and one with it; their accuracies on test images."""
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16 - 0.5
    labels = torch.tensor(digits.target)
    train, test = (images[TEST:], labels[TEST:]), (images[:TEST], labels[:TEST])

    networks = {name: network(width) for name, width in (("teacher", 32), ("alone", 4))}
    networks["distilled"] = network(4)
    fit(networks["teacher"], *train, epochs)
    fit(networks["alone"], *train, epochs)
    fit(networks["distilled"], *train, epochs, TeacherEnsemble(networks["teacher"]))
    found = {name: accuracy(x, *test) for name, x in networks.items()}
    for name, value in found.items():
        print(f"{name:<10} {value:.3f}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=15, help="of each network (default 15)")
    main(parser.parse_args().epochs)
