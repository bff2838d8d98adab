"""Prompts of the downstream classes: a random template per class and step (FLYT, Appendix C.8)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from datacomp_flyt.flyt.downstream_tasks import DownstreamTask, sample_prompts

_CACHE = 1 << 17  # ImageNet's 1,000 classes with 80 templates each


class Prompts:
    """Tokens of one prompt for each class of all tasks, with templates drawn anew in each step.

    Attributes:
        tasks: the downstream tasks.
        num_classes: K, the number of classes of all tasks together.
        class_tasks: index of the task of each class [K].
    """

    def __init__(
        self,
        tasks: Sequence[DownstreamTask],
        tokenize: Callable[[list[str]], Tensor],
        seed: int,
    ) -> None:
        self.tasks, self.seed = list(tasks), seed
        class_counts = [len(task.class_names) for task in self.tasks]
        self.num_classes = sum(class_counts)
        self.class_tasks = torch.repeat_interleave(
            torch.arange(len(class_counts)), torch.tensor(class_counts)
        )
        self._tokens = lru_cache(_CACHE)(lambda text: tokenize([text])[0])

    def of_step(self, step: int, classes: Sequence[int] | range) -> Tensor:
        """Return tokens [len(classes), L] of the prompts of some classes; equal on all ranks."""
        prompts = sample_prompts(self.tasks, np.random.default_rng([self.seed, step]))
        chosen = [self._tokens(prompts[index]) for index in classes]
        return torch.stack(chosen) if chosen else self._tokens(prompts[0])[None][:0]
