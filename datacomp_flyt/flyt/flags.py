"""The flags of FLYT training. Those that a preset sets have its value where they are not given."""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict, fields
from typing import Any

from datacomp_flyt.errors import InputError
from datacomp_flyt.flyt.downstream_loss import LOSSES
from datacomp_flyt.flyt.precision import PRECISIONS, TANGENTS
from datacomp_flyt.flyt.presets import PRESETS, Preset
from datacomp_flyt.flyt.schedule import SCHEDULES
from datacomp_flyt.flyt.training_log import DESTINATIONS
from datacomp_flyt.mixing.columns import check_named_once
from datacomp_flyt.mixing.published import PUBLISHED_COLUMNS

FEATURES = ("scores", "embeddings", "images")

_GROUPS: dict[str, dict[str, dict[str, Any]]] = {
    "data": {
        "--train_data": {
            "required": True,
            "help": "the pool's tars (img2dataset): a folder, a pattern such as "
            "'shards/{00000000..00012895}.tar', or an address that webdataset reads",
        },
        "--metadata_dir": {"help": "the pool's metadata: parquet, and npz for embeddings"},
        "--scores_dir": {
            "help": "score tables: parquet files with a uid column and columns of scores"
        },
        "--downstream_dir": {
            "required": True,
            "help": "labelled tars (image and cls), or a folder of such folders, one for each task",
        },
        "--downstream_tasks": {"nargs": "+", "help": "folders to use (default: all there are)"},
        "--evaluation_dir": {
            "help": "folder of DataComp's evaluation sets, for class names and templates that do "
            "not lie beside the downstream tars"
        },
        "--task_weights": {
            "choices": ["mixed", "balanced"],
            "default": "mixed",
            "help": "several tasks in proportion to their tars, or all alike (C.9)",
        },
        "--captions": {
            "choices": ["templates", "txt"],
            "default": "templates",
            "help": "downstream_loss clip: a template of the class, or the tar's txt",
        },
        "--upstream_batch_size": {"type": int, "help": "B, of all processes together"},
        "--downstream_batch_size": {"type": int, "help": "B', of all processes together"},
        "--num_streams": {
            "type": int,
            "help": "independent random streams of data; a multiple of processes times workers, "
            "and a divisor of both batches",
        },
        "--num_workers": {"type": int, "default": 0, "help": "loader processes for each process"},
        "--upstream_shuffle": {"type": int, "help": "examples in each stream's buffer"},
        "--downstream_shuffle": {"type": int, "help": "examples in each stream's buffer"},
        "--max_bad_share": {
            "type": float,
            "default": 0.1,
            "help": "share of unreadable tars above which training stops",
        },
    },
    "scoring model": {
        "--features": {
            "choices": FEATURES,
            "help": "what it scores by: columns of --scores_dir (M-FLYT), embeddings of the npz, "
            "or embeddings that a CLIP model makes of the pairs (E-FLYT)",
        },
        "--score_columns": {
            "nargs": "+",
            "metavar": "COLUMN",
            "default": list(PUBLISHED_COLUMNS),
            "help": "features scores: columns to mix (default: FLYT's twelve)",
        },
        "--allow_partial_scores": {
            "action": "store_true",
            "help": "leave out examples that lack a score",
        },
        "--drop_nonfinite": {
            "action": "store_true",
            "help": "leave out examples with a score or embedding that is NaN or infinite",
        },
        "--no_standardize": {"action": "store_true", "help": "mix raw columns (Table 8)"},
        "--embedding_arrays": {
            "nargs": "+",
            "metavar": "ARRAY",
            "default": ["b32_img", "b32_txt"],
            "help": "features embeddings: arrays of the npz, image first",
        },
        "--extractor_model": {"help": "features images: open_clip's name or a JSON file"},
        "--extractor_init": {"help": "its weights: random, a tag of open_clip, or a file"},
        "--train_extractor": {"action": "store_true", "help": "train it too (Table 12)"},
        "--glu_layers": {"type": int, "default": 1, "help": "layers of E-FLYT's head"},
        "--glu_hidden_ratio": {"type": float, "default": 1.0, "help": "its hidden over input size"},
        "--cosine_start": {"action": "store_true", "help": "start it near the CLIP score"},
        "--scoring_init": {"help": "scoring model to start from: a file, or 'paper' (Table 2)"},
        "--scoring_lr": {"type": float, "help": "its learning rate"},
        "--scoring_weight_decay": {"type": float, "help": "its decay (default: --weight_decay)"},
    },
    "reference model": {
        "--reference_model": {"help": "open_clip's name or a JSON file"},
        "--reference_init": {
            "help": "its weights: random, a tag of open_clip such as openai, or a checkpoint; the "
            "paper's M-FLYT starts from one trained on the unfiltered pool"
        },
        "--freeze_reference": {"action": "store_true", "help": "do not train it (Table 12)"},
        "--reference_lr": {"type": float, "help": "its learning rate"},
        "--weight_decay": {"type": float, "help": "its decay"},
        "--optimizer": {
            "choices": ["adamw", "sgd"],
            "default": "adamw",
            "help": "of the reference model; sgd takes beta1 as momentum",
        },
        "--beta1": {"type": float, "default": 0.9, "help": "of both models"},
        "--beta2": {"type": float, "default": 0.98, "help": "of both models"},
        "--eps": {"type": float, "default": 1e-6, "help": "of both models"},
        "--grad_clip_norm": {"type": float, "help": "clip its gradient; v goes through the clip"},
    },
    "training": {
        "--downstream_loss": {"choices": LOSSES, "help": "C.8"},
        "--num_steps": {"type": int, "help": "steps"},
        "--warmup": {"type": int, "help": "steps of linear warm-up"},
        "--schedule": {"choices": SCHEDULES, "default": "cosine", "help": "after the warm-up"},
        "--precision": {"choices": list(PRECISIONS), "help": "of the towers; amp is float16"},
        "--tangent": {
            "choices": TANGENTS,
            "help": "of the towers: forward mode, or differences (default: one_sided in fp32, "
            "exact in bf16 and amp)",
        },
        "--difference_step": {"type": float, "help": "of differences, relative to the parameters"},
        "--micro_batch_size": {
            "type": int,
            "help": "rows that go through a tower at once, on each process",
        },
        "--seed": {"type": int, "default": 0, "help": "of data, prompts and random weights"},
        "--device": {"help": "cuda, cpu, ... (default: cuda where there is one)"},
    },
    "output": {
        "--output_dir": {"required": True, "help": "folder of checkpoint, log and results"},
        "--resume": {"action": "store_true", "help": "go on from its checkpoint, if it has one"},
        "--checkpoint_every": {
            "type": int,
            "help": "steps between checkpoints; the data is shuffled anew after each",
        },
        "--log_every": {"type": int, "default": 10, "help": "steps between lines of the log"},
        "--report_to": {"nargs": "*", "choices": DESTINATIONS, "default": [], "help": "also"},
    },
}

# What a resumed run may change without changing the result.
FREE_FLAGS = {
    "command", "device", "log_every", "num_workers", "output_dir", "preset", "report_to", "resume",
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add all flags."""
    parser.add_argument(
        "--preset",
        choices=list(PRESETS),
        required=True,
        help="Table 7's configurations, or a small one for a CPU; other flags go before it",
    )
    for title, flags in _GROUPS.items():
        group = parser.add_argument_group(title)
        for flag, options in flags.items():
            group.add_argument(flag, **options)


def fill_in(args: argparse.Namespace) -> None:
    """Give every flag that is not given its preset's value, and check numbers.

    Raises:
        InputError: a number out of range.
    """
    preset = PRESETS[args.preset]
    for field in fields(Preset):
        if getattr(args, field.name) is None:
            setattr(args, field.name, asdict(preset)[field.name])
    if args.scoring_weight_decay is None:
        args.scoring_weight_decay = args.weight_decay
    for name in _POSITIVE:
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"--{name} is {value}, wanted a number more than 0")
    for name in _SHARES:
        if not 0 <= getattr(args, name) < 1:
            raise InputError(f"--{name} is {getattr(args, name)}, wanted 0 or more and less than 1")
    for name in ("weight_decay", "scoring_weight_decay", "warmup", "num_workers", "seed"):
        if not 0 <= getattr(args, name) < math.inf:
            raise InputError(f"--{name} is {getattr(args, name)}, wanted 0 or more")
    check_named_once(args.score_columns, "--score_columns")
    if args.seed >= 1 << 63:
        raise InputError(f"--seed is {args.seed}, wanted less than 2^63")


_POSITIVE = (
    "upstream_batch_size", "downstream_batch_size", "num_streams", "upstream_shuffle",
    "downstream_shuffle", "glu_layers", "glu_hidden_ratio", "scoring_lr", "reference_lr", "eps",
    "grad_clip_norm", "num_steps", "difference_step", "micro_batch_size", "checkpoint_every",
    "log_every",
)  # fmt: skip
_SHARES = ("beta1", "beta2", "max_bad_share")
