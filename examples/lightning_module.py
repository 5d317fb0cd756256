"""R2KD as a Lightning module, on scikit-learn's digits; downloads nothing.

pip install lightning; python examples/lightning_module.py
"""

from __future__ import annotations

import argparse

import lightning
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from r2kd_ext import CorrelationKDLoss, TeacherEnsemble

TEST = 500  # images


def network(width: int) -> nn.Module:
    """Two layers for 8 x 8 images."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


class Supervised(lightning.LightningModule):
    """Cross-entropy alone."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self.student(images), labels)

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        images, labels = batch
        hits = self.student(images).argmax(1) == labels
        self.log("accuracy", hits.float().mean(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # Not self.parameters(): the teacher's are frozen.
        return torch.optim.SGD(self.student.parameters(), lr=0.05, momentum=0.9)


class Distilled(Supervised):
    """Cross-entropy and the correlation distances to a teacher blended with its pruned copy.

    The ensemble is a submodule, so that Lightning moves it to the device; it stays frozen and in
    eval mode whatever the trainer does. On several devices, give the loss the process group:
    CorrelationKDLoss(rank_weight=2.0, group=torch.distributed.group.WORLD).
    """

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__(student)
        self.teacher = TeacherEnsemble(teacher)
        self.criterion = CorrelationKDLoss.r2kd()

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        images, labels = batch
        logits = self.student(images)
        distance = self.criterion(logits, self.teacher(images))
        entropy = F.cross_entropy(logits, labels)
        self.log_dict({"entropy": entropy, "distance": distance})
        return entropy + distance


def main(epochs: int) -> dict[str, float]:
    """Train a teacher and a student with it; their accuracies on test images."""
    lightning.seed_everything(0, verbose=False)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32) / 16 - 0.5
    labels = torch.tensor(digits.target)
    train = DataLoader(TensorDataset(images[TEST:], labels[TEST:]), 64, shuffle=True)
    test = DataLoader(TensorDataset(images[:TEST], labels[:TEST]), TEST)

    def fit(module: Supervised) -> float:
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accelerator="auto",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, train)
        return float(trainer.validate(module, test, verbose=False)[0]["accuracy"])

    teacher = Supervised(network(256))
    found = {"teacher": fit(teacher), "distilled": fit(Distilled(network(16), teacher.student))}
    for name, value in found.items():
        print(f"{name:<10} {value:.3f}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=15, help="of each network (default 15)")
    main(parser.parse_args().epochs)
