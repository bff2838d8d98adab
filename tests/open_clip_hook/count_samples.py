"""Counts how often open_clip's own loader yields each picture in each epoch.

    python count_samples.py '{"subset": "s.npy"}' EPOCHS SAMPLES --train-data ... --seed 1

The first argument goes to `install_hook` (`null` for the stock trainer). A picture is identified by
the digest of its pixels, since the stock loader does not yield uids. Prints one JSON line: a list
of {digest: times} by epoch.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from collections import Counter
from typing import Any

import torch
from seeded_trainer import trainer
from torch import Tensor


def digest_of_pixels(image: Any) -> Tensor:
    """Return 63 bits of the picture's digest; replaces the transform."""
    digest = hashlib.md5(image.convert("RGB").tobytes()).digest()
    return torch.tensor(int.from_bytes(digest[:8], "big") >> 1)


def no_tokens(text: str) -> Tensor:
    return torch.zeros(1, 1, dtype=torch.int64)


def count(settings: Any, epochs: int, samples: int, words: list[str]) -> list[Counter[str]]:
    main = trainer()
    if settings is not None:
        from datacomp_flyt.open_clip_hook import install_hook

        install_hook(**settings)
    params = importlib.import_module(main.__name__.replace("main", "params"))
    flags = ["--dataset-type", "webdataset", "--dataset-resampled", "--workers", "1"]
    args = params.parse_args([*flags, "--train-num-samples", str(samples), *words])
    args.world_size, args.rank, args.device, args.distributed = 1, 0, "cpu", False
    torch.manual_seed(args.seed)
    transforms = (digest_of_pixels, digest_of_pixels)
    training = main.get_data(args, transforms, epoch=0, tokenizer=no_tokens)["train"]
    counts = []
    for epoch in range(epochs):
        training.set_epoch(epoch)
        seen = Counter[str]()
        for batch in training.dataloader:
            images = batch["image"] if isinstance(batch, dict) else batch[0]
            seen.update(f"{digest:016x}" for digest in images.tolist())
        counts.append(seen)
    return counts


if __name__ == "__main__":
    torch.set_num_threads(1)
    settings, epochs, samples, *words = sys.argv[1:]
    print(json.dumps(count(json.loads(settings), int(epochs), int(samples), words)))
