"""R2KD in a subclass of the Hugging Face Trainer: a small BERT learns from a larger one.

The task is made up, and no weights are downloaded: which of 8 words comes most often in a sentence
of 12.

pip install transformers; python examples/huggingface_trainer.py
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from r2kd_ext import CorrelationKDLoss, TeacherEnsemble

WORDS, LENGTH = 8, 12


class Sentences(Dataset[dict[str, Tensor]]):
    """Random sentences, labelled by their most frequent word (of several, the first)."""

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.words = torch.randint(WORDS, (count, LENGTH), generator=generator)
        self.labels = F.one_hot(self.words, WORDS).sum(1).argmax(1)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.words[index], "labels": self.labels[index]}


def bert(width: int) -> BertForSequenceClassification:
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=WORDS,
            hidden_size=width,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=2 * width,
            max_position_embeddings=LENGTH,
            num_labels=WORDS,
        )
    )


class Logits(nn.Module):
    """A network as `TeacherEnsemble` takes it: one tensor in, one tensor of logits out."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: Tensor) -> Tensor:
        logits: Tensor = self.network(input_ids=input_ids).logits
        return logits


class DistillationTrainer(Trainer):
    """Adds the correlation distances to a teacher to the loss of the model."""

    def __init__(self, *args: Any, teacher: nn.Module, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.teacher = TeacherEnsemble(Logits(teacher)).to(self.args.device)
        self.criterion = CorrelationKDLoss.r2kd()

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **rest: Any
    ) -> Any:
        outputs = model(**inputs)
        loss = outputs.loss + self.criterion(outputs.logits, self.teacher(inputs["input_ids"]))
        return (loss, outputs) if return_outputs else loss


def accuracy(prediction: Any) -> dict[str, float]:
    hits = prediction.predictions.argmax(1) == prediction.label_ids
    return {"accuracy": float(hits.mean())}


def main(epochs: int) -> dict[str, float]:
    """Train a teacher and a student with it; their accuracies on other sentences."""
    torch.manual_seed(0)
    train, test = Sentences(2000, 1), Sentences(500, 2)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            num_train_epochs=epochs,
            learning_rate=5e-3,
            per_device_train_batch_size=64,
            per_device_eval_batch_size=500,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            seed=0,
        )
        common: dict[str, Any] = {
            "args": arguments,
            "train_dataset": train,
            "eval_dataset": test,
            "compute_metrics": accuracy,
        }

        def fit(trainer: Trainer) -> float:
            trainer.train()
            return float(trainer.evaluate()["eval_accuracy"])

        teacher = bert(64)
        found = {"teacher": fit(Trainer(teacher, **common))}
        student = DistillationTrainer(bert(32), teacher=teacher, **common)
        found["distilled"] = fit(student)
    for name, value in found.items():
        print(f"{name:<10} {value:.3f}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=8, help="of each network (default 8)")
    main(parser.parse_args().epochs)
