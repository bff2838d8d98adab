"""The options of FLYT training: names, types, defaults, descriptions and checks."""

# ruff: noqa: RUF009 (`_option` returns an immutable `dataclasses.field`)

from __future__ import annotations

import functools
import inspect
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from datacomp_flyt.arguments import check_list
from datacomp_flyt.errors import InputError
from datacomp_flyt.flyt.data import TASK_WEIGHTS
from datacomp_flyt.flyt.downstream_loss import LOSSES
from datacomp_flyt.flyt.precision import PRECISIONS, TANGENTS, Tangent
from datacomp_flyt.flyt.presets import PRESETS
from datacomp_flyt.flyt.schedule import SCHEDULES
from datacomp_flyt.flyt.training_log import DESTINATIONS
from datacomp_flyt.mixing.columns import check_named_once
from datacomp_flyt.mixing.published import PUBLISHED_COLUMNS

P = ParamSpec("P")
Config = TypeVar("Config")
Result = TypeVar("Result")

_PRESET: Any = None
"""Default of the options that get their value from the preset."""

FEATURES = ("scores", "embeddings", "images")
CAPTIONS = ("templates", "txt")
OPTIMIZERS = ("adamw", "sgd")

_POSITIVE = (
    "upstream_batch_size", "downstream_batch_size", "num_streams", "upstream_shuffle",
    "downstream_shuffle", "glu_layers", "glu_hidden_ratio", "scoring_lr", "reference_lr", "eps",
    "grad_clip_norm", "num_steps", "difference_step", "micro_batch_size", "checkpoint_every",
    "log_every",
)  # fmt: skip
_SHARES = ("beta1", "beta2", "max_bad_share")
_NOT_NEGATIVE = ("weight_decay", "scoring_weight_decay", "warmup", "num_workers", "seed")

_NOT_DECISIVE = (
    "device", "log_every", "num_workers", "output_dir", "preset", "report_to", "resume",
)  # fmt: skip


def _about(text: str, choices: tuple[str, ...] = (), group: str = "") -> dict[str, Any]:
    """Return the metadata of an option.

    Args:
        text: its description.
        choices: the allowed values; empty if there are more.
        group: the heading in `--help` above this option, if it is the first of its group.
    """
    return {"help": text, "choices": choices, "group": group}


def _option(default: Any, text: str, choices: tuple[str, ...] = (), group: str = "") -> Any:
    """Declare an option with a default; see `_about`."""
    return field(default=default, metadata=_about(text, choices, group))


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Options of a FLYT training, which are also the flags of `datacomp-flyt train`.

    None means the preset's value, where the preset has one.

    Raises:
        InputError: a value is out of range, or not among the allowed ones.
    """

    preset: str = field(
        metadata=_about(
            "configuration: those of FLYT's Table 7, or `tiny` for a CPU; every other option "
            "overrides it",
            tuple(PRESETS),
        )
    )

    train_data: str | Path = field(
        metadata=_about(
            "the pool's tars (img2dataset): a folder, a pattern such as "
            "'shards/{00000000..00012895}.tar', or an address that webdataset reads",
            group="data",
        )
    )
    metadata_dir: str | Path | None = _option(
        None, "the pool's metadata: parquet, and npz for embeddings"
    )
    scores_dir: str | Path | None = _option(
        None, "score tables: parquet files with a uid column and columns of scores"
    )
    downstream_dir: str | Path = field(
        metadata=_about(
            "labelled tars (image and cls), or a folder of such folders, one for each task"
        )
    )
    downstream_tasks: tuple[str, ...] | None = _option(None, "folders to use (default: all)")
    evaluation_dir: str | Path | None = _option(
        None,
        "DataComp's evaluation sets, for class names and templates that are not in "
        "--downstream_dir",
    )
    task_weights: str = _option(
        "mixed",
        "with several tasks: mixed draws from each in proportion to its number of tars, balanced "
        "equally (Appendix C.9)",
        TASK_WEIGHTS,
    )
    captions: str = _option(
        "templates",
        "captions of --downstream_loss clip: templates with the class name, or the tars' txt",
        CAPTIONS,
    )
    upstream_batch_size: int = _option(
        _PRESET, "B, upstream examples in a step, of all processes together"
    )
    downstream_batch_size: int = _option(
        _PRESET, "B', downstream examples in a step, of all processes together"
    )
    num_streams: int = _option(
        _PRESET,
        "independent random streams of data; must be a multiple of (training processes x loader "
        "processes of each), and divide both batch sizes",
    )
    num_workers: int = _option(0, "loader processes of each training process")
    upstream_shuffle: int = _option(_PRESET, "upstream examples in each stream's shuffle buffer")
    downstream_shuffle: int = _option(
        _PRESET, "downstream examples in each stream's shuffle buffer"
    )
    max_bad_share: float = _option(0.1, "share of unreadable tars above which training stops")

    features: str = _option(
        _PRESET,
        "input of the scoring model: columns of --scores_dir (M-FLYT), embeddings of the npz, "
        "or embeddings that a CLIP model makes of the pairs (E-FLYT)",
        FEATURES,
        group="scoring model",
    )
    score_columns: tuple[str, ...] = _option(
        tuple(PUBLISHED_COLUMNS), "columns to mix, with --features scores (default: FLYT's twelve)"
    )
    allow_partial_scores: bool = _option(False, "leave out examples that lack a score")
    drop_nonfinite: bool = _option(
        False, "leave out examples with a score or embedding that is NaN or infinite"
    )
    no_standardize: bool = _option(False, "mix raw columns (Table 8)")
    embedding_arrays: tuple[str, ...] = _option(
        ("b32_img", "b32_txt"), "arrays of the npz, image first, with --features embeddings"
    )
    extractor_model: str | Path = _option(
        _PRESET, "feature extractor of --features images: open_clip's name or a JSON file"
    )
    extractor_init: str | Path = _option(
        _PRESET, "weights of the extractor: random, a tag of open_clip, or a file"
    )
    train_extractor: bool = _option(False, "train the extractor, too (Table 12)")
    glu_layers: int = _option(1, "number of layers of E-FLYT's head")
    glu_hidden_ratio: float = _option(1.0, "hidden size over input size of the head")
    cosine_start: bool = _option(False, "start the head close to the cosine of image and text")
    scoring_init: str | Path | None = _option(
        None, "scoring model to start from: a file, or 'paper' (Table 2)"
    )
    scoring_lr: float = _option(_PRESET, "learning rate of the scoring model")
    scoring_weight_decay: float | None = _option(
        None, "weight decay of the scoring model (default: --weight_decay)"
    )

    reference_model: str | Path = _option(
        _PRESET, "reference model: open_clip's name or a JSON file", group="reference model"
    )
    reference_init: str | Path | None = _option(
        None,
        "weights of the reference model: random, a tag of open_clip such as openai, or a "
        "checkpoint; the paper's M-FLYT starts from one trained on the unfiltered pool",
    )
    freeze_reference: bool = _option(False, "do not train the reference model (Table 12)")
    reference_lr: float = _option(_PRESET, "learning rate of the reference model")
    weight_decay: float = _option(_PRESET, "weight decay of the reference model")
    optimizer: str = _option(
        "adamw", "optimizer of the reference model; sgd takes --beta1 as momentum", OPTIMIZERS
    )
    beta1: float = _option(0.9, "AdamW's beta1, of both models")
    beta2: float = _option(0.98, "AdamW's beta2, of both models")
    eps: float = _option(1e-6, "AdamW's eps, of both models")
    grad_clip_norm: float | None = _option(
        None,
        "clip the norm of the reference model's gradient; the metagradient is differentiated "
        "through the clipping",
    )

    downstream_loss: str = _option(
        _PRESET, "loss of the downstream batch (Appendix C.8)", LOSSES, group="training"
    )
    num_steps: int = _option(_PRESET, "number of steps")
    warmup: int = _option(_PRESET, "number of steps of linear warm-up")
    schedule: str = _option("cosine", "shape of the learning rate after the warm-up", SCHEDULES)
    precision: str = _option(_PRESET, "arithmetic of the towers; amp is float16", tuple(PRECISIONS))
    tangent: Tangent | None = _option(
        None,
        "Jacobian-vector product of the towers: forward mode, or differences (default: "
        "one_sided in fp32, exact in bf16 and amp)",
        TANGENTS,
    )
    difference_step: float | None = _option(
        None,
        "length of the movement of finite differences, relative to the norm of the parameters "
        "(default: by dtype and method)",
    )
    micro_batch_size: int | None = _option(
        None, "rows that go through a tower at once, in each process"
    )
    seed: int = _option(0, "seed of data, prompts and random weights")
    device: str | None = _option(None, "cuda, cpu, ... (default: cuda if it is available)")

    output_dir: str | Path = field(
        metadata=_about("folder for checkpoint, log and results", group="output")
    )
    resume: bool = _option(False, "continue from the folder's checkpoint, if it has one")
    checkpoint_every: int = _option(
        _PRESET,
        "steps between checkpoints; it also sets the epochs of the data, so another value gives "
        "other batches",
    )
    log_every: int = _option(10, "number of steps between lines of the log")
    report_to: tuple[str, ...] = _option((), "other destinations of the log", DESTINATIONS)

    def __post_init__(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            if str(option.type).startswith("tuple") and value is not None:
                value = tuple(check_list(value, f"--{option.name}"))
            elif isinstance(value, os.PathLike):
                value = os.fspath(value)
            object.__setattr__(self, option.name, value)  # the class is frozen
        self._check_choices()
        preset = PRESETS[self.preset]
        for name, value in asdict(preset).items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if self.scoring_weight_decay is None:
            object.__setattr__(self, "scoring_weight_decay", self.weight_decay)
        self._check_ranges()
        check_named_once(self.score_columns, "--score_columns")

    def decisive(self) -> dict[str, Any]:
        """Return the options that decide the result. A resumed run must not change them."""
        return {name: value for name, value in vars(self).items() if name not in _NOT_DECISIVE}

    def _check_choices(self) -> None:
        for option in fields(self):
            choices, value = option.metadata["choices"], getattr(self, option.name)
            values = value if isinstance(value, tuple) else () if value is None else (value,)
            for each in values:
                if choices and each not in choices:
                    raise InputError(
                        f"--{option.name} is {each!r}, wanted one of {', '.join(choices)}"
                    )

    def _check_ranges(self) -> None:
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"--{name} is {value}, wanted a number more than 0")
        for name in _SHARES:
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise InputError(f"--{name} is {value}, wanted 0 or more and less than 1")
        for name in _NOT_NEGATIVE:
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise InputError(f"--{name} is {value}, wanted 0 or more")
        if self.seed >= 1 << 63:
            raise InputError(f"--seed is {self.seed}, wanted less than 2^63")


def with_options_of(
    config: Callable[P, Config],
) -> Callable[[Callable[[Config], Result]], Callable[P, Result]]:
    """Make a function of a `TrainingConfig` take the config's fields as keyword arguments."""

    def decorate(function: Callable[[Config], Result]) -> Callable[P, Result]:
        @functools.wraps(function)
        def with_options(*args: P.args, **kwargs: P.kwargs) -> Result:
            return function(config(*args, **kwargs))

        signature = inspect.signature(config).replace(return_annotation="TrainingResult")
        # an attribute that mypy does not know of functions
        setattr(with_options, "__signature__", signature)  # noqa: B010
        with_options.__doc__ = f"{inspect.getdoc(function)}\n\nArgs:\n{_describe_options()}"
        return with_options

    return decorate


def _describe_options() -> str:
    """List all options with their descriptions, for a docstring."""
    lines = []
    for option in fields(TrainingConfig):
        choices = option.metadata["choices"]
        allowed = f" ({', '.join(choices)})" if choices else ""
        lines.append(f"    {option.name}: {option.metadata['help']}{allowed}")
    return "\n".join(lines).replace("--", "")
