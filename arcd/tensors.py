"""Lessons as tensors; shared by the trainer and by pretraining."""

from collections.abc import Sequence

import torch
from torch import Tensor

from arcd.prompts import IGNORED, Lesson


def collate(lessons: Sequence[Lesson], pad: int, device: str) -> tuple[Tensor, Tensor]:
    """Tokens and labels, each (lessons, longest), padded on the right."""
    longest = max(len(lesson.tokens) for lesson in lessons)
    tokens = [[*lesson.tokens, *[pad] * (longest - len(lesson.tokens))] for lesson in lessons]
    labels = [[*lesson.labels, *[IGNORED] * (longest - len(lesson.labels))] for lesson in lessons]
    return torch.tensor(tokens, device=device), torch.tensor(labels, device=device)
