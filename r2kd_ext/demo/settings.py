"""What a run of the demo computes."""

from __future__ import annotations

from dataclasses import dataclass

TEACHER_MODEL, STUDENT_MODEL = "digits_teacher", "digits_student"


@dataclass(frozen=True)
class Settings:
    """What a run computes. Every value was chosen on the validation split.

    `images_per_class` is what a student sees: drawn anew for each seed from the
    `teacher_images_per_class` that the teacher trains on.
    """

    seeds: int = 3
    teacher_epochs: int = 20
    student_epochs: int = 300
    teacher_images_per_class: int = 250
    images_per_class: int = 10
    validation_per_class: int = 100
    test_per_class: int = 150
    teacher_batch_size: int = 64
    student_batch_size: int = 50
    teacher_learning_rate: float = 0.05
    pruning_amount: float = 0.1
    dense_weight: float = 0.7


# To see that everything works; the accuracies mean nothing.
QUICK = {
    "seeds": 2,
    "teacher_epochs": 2,
    "student_epochs": 10,
    "teacher_images_per_class": 50,
    "validation_per_class": 20,
    "test_per_class": 50,
}
