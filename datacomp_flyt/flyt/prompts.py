"""Texts of the downstream classes: one random template per class and step (FLYT, C.8)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from datacomp_flyt.flyt.downstream_tasks import DownstreamTask, sample_prompts

_CACHE = 1 << 17  # ImageNet's 1,000 classes with 80 templates each


class Prompts:
    """Tokens of one prompt for each class of all tasks, drawn anew for each step."""

    def __init__(
        self,
        tasks: Sequence[DownstreamTask],
        tokenize: Callable[[list[str]], Tensor],
        seed: int,
    ) -> None:
        self.tasks, self.seed = list(tasks), seed
        numbers = [len(task.class_names) for task in self.tasks]
        self.number = sum(numbers)
        # of each class [K]
        self.class_tasks = torch.repeat_interleave(
            torch.arange(len(numbers)), torch.tensor(numbers)
        )
        self._tokens = lru_cache(_CACHE)(lambda text: tokenize([text])[0])

    def of_step(self, step: int, classes: Sequence[int] | range) -> Tensor:
        """Tokens [len(classes), L] of some classes' prompts, the same on every rank."""
        prompts = sample_prompts(self.tasks, np.random.default_rng([self.seed, step]))
        chosen = [self._tokens(prompts[number]) for number in classes]
        return torch.stack(chosen) if chosen else self._tokens(prompts[0])[None][:0]
