"""Learning rates: linear warm-up, then half a cosine down to 0 (FLYT, C.1; open_clip's)."""

from __future__ import annotations

import math

SCHEDULES = ("cosine", "constant")


def learning_rate(
    step: int, base: float, warmup: int, num_steps: int, schedule: str = "cosine"
) -> float:
    """The rate of a step (0 is the first); `constant` stays at `base` after the warm-up."""
    if step < warmup:
        return base * (step + 1) / warmup
    if schedule == "constant":
        return base
    done = (step - warmup) / max(num_steps - warmup, 1)
    return base * 0.5 * (1 + math.cos(math.pi * done))
