"""DataComp's scales: model and samples seen in training, and SCS as the paper ran it there."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """Soft Cap Sampling at one scale, N, alpha and G of Algorithm 2; and the model, as open_clip
    calls it.
    """

    model: str
    num_samples: int
    repetition_penalty: float
    sampling_batch_size: int


SCALES = {
    "small": Scale("ViT-B-32", 12_800_000, 0.5, 10_000),  # FLYT, section 4.4 and C.11
    "medium": Scale("ViT-B-32", 128_000_000, 0.15, 100_000),  # FLYT, section 4.3 and C.10
    # The paper stops at medium. Here alpha is medium's and G grows with N, as it does above.
    "large": Scale("ViT-B-16", 1_280_000_000, 0.15, 1_000_000),
    "xlarge": Scale("ViT-L-14", 12_800_000_000, 0.15, 10_000_000),
}
