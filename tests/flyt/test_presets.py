"""The presets against a copy of the paper's Table 7, and other experiments of it as flags."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")

from datacomp_flyt.flyt.presets import PRESETS
from tests.conftest import PUBLISHED, refusal
from tests.flyt.runs import parse

# These rows are equal in all four columns of the table.
COMMON = {
    "optimizer": "adamw",
    "weight_decay": 0.2,
    "scoring_weight_decay": 0.2,
    "beta1": 0.9,
    "beta2": 0.98,
    "schedule": "cosine",
    "upstream_batch_size": 4096,
    "num_steps": 5000,
    "warmup": 100,
    "freeze_reference": False,
    "train_extractor": False,
}
TABLE_7: dict[str, dict[str, Any]] = {
    "e_flyt_base": {
        "features": "images",
        "reference_lr": 5e-5,
        "scoring_lr": 1e-3,
        "extractor_init": "openai",
        "reference_init": "openai",
        "downstream_loss": "cross_entropy_temperature",
        "downstream_batch_size": 3072,
    },
    "e_flyt_22": {
        "features": "images",
        "reference_lr": 5e-5,
        "scoring_lr": 1e-3,
        "extractor_init": "openai",
        "reference_init": "openai",
        "downstream_loss": "clip",
        "downstream_batch_size": 768,
    },
    # the table has "Variable"; these are the best rates of Table 11
    "e_flyt_lr": {
        "features": "images",
        "reference_lr": 5e-5,
        "scoring_lr": 1e-3,
        "extractor_init": "openai",
        "reference_init": "openai",
        "downstream_loss": "cross_entropy",
        "downstream_batch_size": 1536,
    },
    # "DataComp medium": the user gives a file
    "m_flyt_base": {
        "features": "scores",
        "reference_lr": 5e-5,
        "scoring_lr": 1e-3,
        "reference_init": None,
        "downstream_loss": "cross_entropy",
        "downstream_batch_size": 3072,
    },
}
SAMPLES = {  # millions of downstream and upstream samples
    "e_flyt_base": (15.4, 20.5),
    "e_flyt_22": (3.8, 20.5),
    "e_flyt_lr": (7.7, 20.5),
    "m_flyt_base": (15.4, 20.5),
}


@pytest.mark.parametrize("preset", TABLE_7)
def test_table_7(preset: str) -> None:
    actual = vars(parse("--preset", preset))
    expected = COMMON | TABLE_7[preset]
    assert {name: actual[name] for name in expected} == expected
    assert actual["reference_model"] == actual["extractor_model"] == "ViT-B-32"
    assert not actual["no_standardize"]
    samples = [
        actual[f"{side}_batch_size"] * actual["num_steps"] / 1e6
        for side in ("downstream", "upstream")
    ]
    assert [round(millions, 1) for millions in samples] == list(SAMPLES[preset])


def test_all_presets_are_tested() -> None:
    assert set(PRESETS) == {*TABLE_7, "tiny"}


def test_defaults_in_the_papers_text() -> None:
    """The head has one layer of 1024 hidden units over 2 x 512; M-FLYT has twelve columns."""
    actual = parse("--preset", "m_flyt_base")
    assert (actual.glu_layers, actual.glu_hidden_ratio, actual.cosine_start) == (1, 1.0, False)
    assert tuple(actual.score_columns) == PUBLISHED
    assert actual.eps == 1e-6
    assert actual.task_weights == "mixed"
    assert parse("--preset", "e_flyt_22").downstream_shuffle == 50_000  # C.9
    assert parse("--preset", "e_flyt_base").downstream_shuffle == 5000


VARIATIONS = [
    # Table 8
    ("m_flyt_base", "--downstream_loss cross_entropy_temperature"),
    ("m_flyt_base", "--reference_init random"),
    ("m_flyt_base", "--reference_init openai"),
    ("m_flyt_base", "--no_standardize"),
    # Table 11
    *(
        ("e_flyt_lr", f"--scoring_lr {rate} --reference_lr 1e-4")
        for rate in (5e-4, 1e-3, 5e-3, 1e-2)
    ),
    *(("e_flyt_lr", f"--scoring_lr 1e-3 --reference_lr {rate}") for rate in (1e-5, 5e-5, 5e-4)),
    # Table 12
    ("e_flyt_base", "--downstream_loss cross_entropy"),
    ("e_flyt_base", "--downstream_loss clip"),
    *(("e_flyt_base", f"--reference_init {init}") for init in ("random", "medium.pt", "dc1b.pt")),
    *(("e_flyt_base", f"--extractor_init {init}") for init in ("random", "medium.pt", "dc1b.pt")),
    ("e_flyt_base", "--reference_init dc1b.pt --extractor_init dc1b.pt"),
    ("e_flyt_base", "--freeze_reference"),
    ("e_flyt_base", "--train_extractor"),
    ("e_flyt_base", "--num_steps 12500"),
    ("e_flyt_base", "--num_steps 1250"),
    ("e_flyt_base", "--downstream_batch_size 1024"),
    ("e_flyt_base", "--downstream_batch_size 4096"),
    # Table 13
    ("e_flyt_22", "--task_weights mixed"),
    ("e_flyt_22", "--task_weights balanced"),
    ("e_flyt_22", "--downstream_tasks imagenet"),
]


@pytest.mark.parametrize(("preset", "flags"), VARIATIONS)
def test_each_experiment_of_the_paper_is_a_preset_with_flags(preset: str, flags: str) -> None:
    """The flags change the settings that they name, and no others."""
    words = flags.split()
    plain, varied = vars(parse("--preset", preset)), vars(parse("--preset", preset, *words))
    named = {word.removeprefix("--") for word in words if word.startswith("--")}
    assert {name for name in plain if plain[name] != varied[name]} <= named
    for name, value in zip(words[::2], words[1::2], strict=False):
        if not value.startswith("--"):
            actual = varied[name.removeprefix("--")]
            assert actual == ((value,) if isinstance(actual, tuple) else type(actual)(value))


def test_the_weight_decay_of_the_scoring_model_defaults_to_the_references() -> None:
    assert parse("--preset", "tiny", "--weight_decay", "0").scoring_weight_decay == 0
    actual = parse("--preset", "tiny", "--scoring_weight_decay", "0.5")
    assert (actual.weight_decay, actual.scoring_weight_decay) == (0.2, 0.5)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        *((name, ["0", "-1"]) for name in ("num_steps", "upstream_batch_size", "checkpoint_every")),
        *((name, ["0", "-1"]) for name in ("num_streams", "micro_batch_size", "glu_layers")),
        *((name, ["0", "-1"]) for name in ("downstream_batch_size", "log_every")),
        *((name, ["0", "-1"]) for name in ("upstream_shuffle", "downstream_shuffle")),
        *((name, ["0", "-1e-3", "nan", "inf"]) for name in ("reference_lr", "scoring_lr", "eps")),
        *((name, ["0", "nan", "inf"]) for name in ("glu_hidden_ratio", "difference_step")),
        ("grad_clip_norm", ["0", "-1", "nan"]),
        *((name, ["-0.1", "1", "nan"]) for name in ("beta1", "beta2", "max_bad_share")),
        *((name, ["-1", "nan", "inf"]) for name in ("weight_decay", "scoring_weight_decay")),
        *((name, ["-1"]) for name in ("warmup", "num_workers", "seed")),
        ("seed", [str(2**64)]),
    ],
)
def test_numbers_out_of_range(name: str, values: list[str]) -> None:
    for value in values:
        message = refusal(parse, "--preset", "tiny", f"--{name}={value}")
        assert f"--{name} is {value}" in message or f"--{name} is {float(value)}" in message
