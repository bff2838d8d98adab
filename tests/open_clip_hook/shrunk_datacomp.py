"""Runs DataComp's unmodified train.py on a CPU, with one entry of its scale table made tiny.

    DATACOMP_DIR=checkout python shrunk_datacomp.py --scale small --data_dir ... --output_dir ...

SHRUNK_SCALE, JSON, changes the tiny entry. DATACOMP_DIR may also be the stand-in's folder.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

import open_clip
import torch

sys.path.insert(0, str(Path(__file__).parent))
from seeded_trainer import CONFIGS, CpuDistributedDataParallel

from datacomp_flyt.open_clip_hook.run_script import alias_packages

TINY = {
    "batch_size": 32,
    "learning_rate": 1e-3,
    "train_num_samples": 256,
    "warmup": 4,
    "model": "hook-tiny",
    "beta2": None,
}


def use_cpu() -> None:
    """Replace what open_clip does only on GPUs, or with NCCL."""
    init_process_group = torch.distributed.init_process_group

    def init_with_gloo(*args: Any, **settings: Any) -> None:
        init_process_group(*args[1:], **{**settings, "backend": "gloo"})

    torch.distributed.init_process_group = init_with_gloo
    torch.nn.parallel.DistributedDataParallel = CpuDistributedDataParallel  # type: ignore[misc]
    torch.set_num_threads(1)


def make_training_importable() -> None:
    """Alias `training`, which train.py imports, for newer trainers without the hook."""
    try:
        importlib.import_module("training.main")
    except ImportError:
        importlib.import_module("open_clip_train.main")
        alias_packages("open_clip_train")


if __name__ == "__main__":
    checkout = os.environ["DATACOMP_DIR"]
    sys.path.insert(0, checkout)
    scales: Any = importlib.import_module("scale_configs")
    shrunk = {**TINY, **json.loads(os.environ.get("SHRUNK_SCALE", "{}"))}
    scales.SCALE_CONFIGS[sys.argv[sys.argv.index("--scale") + 1]] = shrunk
    open_clip.add_model_config(CONFIGS)
    use_cpu()
    make_training_importable()
    runpy.run_path(os.path.join(checkout, "train.py"), run_name="__main__")
