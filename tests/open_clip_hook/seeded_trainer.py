"""Runs open_clip's trainer with all its randomness decided by --seed.

    python seeded_trainer.py '{"weights": "w.parquet"}' --train-data ... --model hook-tiny ...

The first argument goes to `install_hook` (`null` for the stock trainer). The sample shuffle, which
open_clip seeds with process id and time, is seeded by the data loader's worker and the epoch, and
training images get the evaluation transform, so two runs differ only by their settings.

The argument `then` begins another training in the same process, which saves startup time. The
script has three flags of its own: `--dump DIR` (with `--name`) writes the model before and after
training and the content of each batch; with it, `--stop-after N` stops after N batches; `--float64`
trains in float64.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import importlib.util
import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.distributed as dist
import webdataset
from safetensors.torch import save_file
from torch import Tensor, nn

CONFIGS = Path(__file__).parent / "model_configs"


def trainer() -> Any:
    """Return `open_clip_train.main`, or `training.main` before 2.26."""
    newer = importlib.util.find_spec("open_clip_train") is not None
    old = importlib.util.find_spec("training") is not None
    return importlib.import_module("training.main" if old or not newer else "open_clip_train.main")


def make_deterministic(main: Any) -> None:
    data: Any = importlib.import_module(main.__name__.replace("main", "data"))
    epochs: list[Any] = []

    class RememberedEpoch(data.SharedEpoch):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            epochs.append(self)

    def shuffle(bufsize: int, initial: int) -> Any:
        return data.detshuffle2(bufsize, initial, seed=-1, epoch=epochs[-1])

    create = main.create_model_and_transforms

    def create_without_augmentation(*args: Any, **kwargs: Any) -> Any:
        model, _, evaluation = create(*args, **kwargs)
        return model, evaluation, evaluation

    data.SharedEpoch = RememberedEpoch
    webdataset.shuffle = shuffle
    main.create_model_and_transforms = create_without_augmentation


class CpuDistributedDataParallel(torch.nn.parallel.DistributedDataParallel):
    """Ignores the device that open_clip names, which is only accepted on a GPU."""

    def __init__(self, module: torch.nn.Module, device_ids: Any = None, **settings: Any) -> None:
        super().__init__(module, **settings)


class Stopped(Exception):
    """Raised after the number of batches in `--stop-after`."""


class RecordedLoader:
    """Wraps the trainer's loader and records digests of its rows: [epoch][batch][row]."""

    def __init__(self, loader: Any, stop_after: int) -> None:
        self.loader, self.stop_after = loader, stop_after
        self.epochs: list[list[list[str]]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __iter__(self) -> Iterator[Any]:
        self.epochs.append([])
        for batch in self.loader:
            if sum(map(len, self.epochs)) == self.stop_after:
                raise Stopped
            parts = (batch["image"], batch["text"]) if isinstance(batch, dict) else batch
            self.epochs[-1].append([digest(image, text) for image, text in zip(*parts)])  # noqa: B905
            yield batch


def digest(image: Tensor, text: Tensor) -> str:
    """Return the digest of an image [3, H, W] and tokens [L], as the model gets them."""
    content = image.contiguous().numpy().tobytes() + text.contiguous().numpy().tobytes()
    return hashlib.md5(content).hexdigest()


def train(main: Any, settings: dict[str, Any] | None, arguments: list[str]) -> None:
    """Run one training, and restore the trainer."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--dump", type=Path)
    parser.add_argument("--float64", action="store_true")
    parser.add_argument("--stop-after", type=int, default=-1)
    own, arguments = parser.parse_known_args(arguments)
    hook = None
    if settings is not None:
        from datacomp_flyt.open_clip_hook import install_hook

        hook = install_hook(**settings)
    create, get_data = main.create_model_and_transforms, main.get_data
    models: list[nn.Module] = []
    loaders: list[RecordedLoader] = []
    target = ""
    if own.dump:
        name = arguments[arguments.index("--name") + 1]
        target = f"{own.dump}/{name}.{os.environ.get('RANK', '0')}"

    def create_model(*args: Any, **kwargs: Any) -> Any:
        model, *transforms = create(*args, **kwargs)
        if own.float64:
            model.double().visual.register_forward_pre_hook(lambda _, args: (args[0].double(),))
        if target:
            save_file(model.state_dict(), f"{target}.first.safetensors")
        models.append(model)
        return model, *transforms

    def get_recorded_data(*args: Any, **kwargs: Any) -> Any:
        data = get_data(*args, **kwargs)
        if target:
            loaders.append(RecordedLoader(data["train"].dataloader, own.stop_after))
            data["train"].dataloader = loaders[0]
        return data

    main.create_model_and_transforms, main.get_data = create_model, get_recorded_data
    logging.root.handlers.clear()
    with contextlib.suppress(Stopped):
        main.main(arguments)
    main.create_model_and_transforms, main.get_data = create, get_data
    if hook is not None:
        hook.remove()
    if dist.is_initialized():
        dist.destroy_process_group()
    if target:
        save_file(models[0].state_dict(), f"{target}.final.safetensors")
        Path(f"{target}.batches.json").write_text(json.dumps(loaders[0].epochs))


if __name__ == "__main__":
    torch.nn.parallel.DistributedDataParallel = CpuDistributedDataParallel  # type: ignore[misc]
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    open_clip.add_model_config(CONFIGS)
    os.environ.setdefault("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # of our own checkpoints
    main = trainer()
    make_deterministic(main)
    words = sys.argv[1:]
    while words:
        end = words.index("then") if "then" in words else len(words)
        settings, *arguments = words[:end]
        train(main, json.loads(settings), arguments)
        words = words[end + 1 :]
