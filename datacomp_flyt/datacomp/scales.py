"""DataComp's scales: the model, the samples seen in training, and the paper's sampling settings."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """One scale of DataComp.

    Attributes:
        model: the model's name in open_clip.
        num_samples: the samples seen in training, N of Algorithm 2.
        repetition_penalty: alpha of Algorithm 2.
        sampling_batch_size: G of Algorithm 2.
    """

    model: str
    num_samples: int
    repetition_penalty: float
    sampling_batch_size: int


SCALES = {
    "small": Scale("ViT-B-32", 12_800_000, 0.5, 10_000),  # FLYT, section 4.4 and C.11
    "medium": Scale("ViT-B-32", 128_000_000, 0.15, 100_000),  # FLYT, section 4.3 and C.10
    # The paper has no larger scale. Here alpha is that of medium, and G grows with N as above.
    "large": Scale("ViT-B-16", 1_280_000_000, 0.15, 1_000_000),
    "xlarge": Scale("ViT-L-14", 12_800_000_000, 0.15, 10_000_000),
}
