"""Learning rate schedules: linear warm-up, then a half cosine to 0 (FLYT, Appendix C.1)."""

from __future__ import annotations

import math

SCHEDULES = ("cosine", "constant")


def learning_rate(
    step: int, base: float, warmup: int, num_steps: int, schedule: str = "cosine"
) -> float:
    """Compute the learning rate of a step.

    Args:
        step: index of the step, from 0.
        base: learning rate after the warm-up.
        warmup: number of steps of linear warm-up.
        num_steps: number of steps of the training.
        schedule: `cosine`, or `constant` to stay at `base`.
    """
    if step < warmup:
        return base * (step + 1) / warmup
    if schedule == "constant":
        return base
    done = (step - warmup) / max(num_steps - warmup, 1)
    return base * 0.5 * (1 + math.cos(math.pi * done))
