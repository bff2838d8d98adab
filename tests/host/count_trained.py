"""Trains with open_clip's own trainer, and counts how often the trainer saw each caption.

    datacomp-flyt train_clip --subset S.npy -- count_trained.py CAPTIONS.json COUNTS.json FLAGS...

CAPTIONS.json has {uid: caption} with different captions, COUNTS.json is written as {uid: count},
and FLAGS are the trainer's flags.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "open_clip_hook"))
from seeded_trainer import CONFIGS, trainer


class CountingLoader:
    """A wrapper of the trainer's loader that counts the texts of its batches."""

    def __init__(self, loader: Any) -> None:
        self.loader, self.counts = loader, Counter[tuple[int, ...]]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            texts = batch["text"] if isinstance(batch, dict) else batch[1]
            self.counts.update(map(tuple, texts.tolist()))
            yield batch


def count(captions: dict[str, str], flags: list[str]) -> dict[str, int]:
    main, loaders = trainer(), list[CountingLoader]()
    get_data = main.get_data

    def get_counting_data(*args: Any, **kwargs: Any) -> Any:
        data = get_data(*args, **kwargs)
        loaders.append(CountingLoader(data["train"].dataloader))
        data["train"].dataloader = loaders[0]
        return data

    main.get_data = get_counting_data
    main.main(flags)
    tokens = open_clip.tokenize(list(captions.values())).tolist()
    uids = {tuple(row): uid for uid, row in zip(captions, tokens)}  # noqa: B905 (also Python 3.9)
    assert len(uids) == len(captions), "two captions have the same tokens"
    return {uids[row]: times for row, times in loaders[0].counts.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    open_clip.add_model_config(CONFIGS)
    captions, counts, *flags = sys.argv[1:]
    Path(counts).write_text(json.dumps(count(json.loads(Path(captions).read_text()), flags)))
