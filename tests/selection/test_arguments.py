"""Arguments of scoring methods and samplers, as Python and the command line give them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

import datacomp_flyt as flyt
from datacomp_flyt.pool.subset import write_subset
from tests.baselines_plugin.job import Job
from tests.conftest import hex_uids, make_pool, refusal, sorted_uids

UIDS = sorted_uids(hex_uids(30))
SCORES = flyt.Scores(UIDS, np.linspace(-1, 1, 30))
TWO_STAGES = {"method": "neg_clip_loss_norm_sim", "num_samples": 5, "repetition_penalty": 1}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_samples": 0}, "--num_samples is 0, wanted 1 or more"),
        ({"num_samples": -5}, "--num_samples is -5, wanted 1 or more"),
        ({"num_samples": 2.5}, "--num_samples is 2.5, wanted an integer, 1 or more"),
        ({"num_samples": "5"}, "--num_samples is '5', wanted an integer"),
        ({"repetition_penalty": -1}, "--repetition_penalty is -1, wanted 0 or more"),
        ({"repetition_penalty": math.nan}, "--repetition_penalty is nan"),
        ({"repetition_penalty": "0.1"}, "--repetition_penalty is '0.1', wanted a number"),
        ({"sampling_batch_size": 0}, "--sampling_batch_size is 0, wanted 1 or more"),
        ({"sampling_batch_size": 2.5}, "--sampling_batch_size is 2.5, wanted an integer"),
        ({"scale": "tiny"}, "--scale is 'tiny', wanted one of small, medium"),
        ({"seed": 1.5}, "--seed is 1.5, wanted an integer"),
        ({"num_workers": 0}, "--num_workers is 0, wanted 1 or more"),
        ({"num_workers": "2"}, "--num_workers is '2', wanted an integer, 1 or more"),
        ({"method": "hcs", "frequency_limit": 0}, "--frequency_limit is 0, wanted 1 or more"),
        ({"method": "hcs", "frequency_limit": 2.5}, "--frequency_limit is 2.5, wanted an integer"),
        ({"method": "hcs", "frequency_limit": "5"}, "--frequency_limit is '5', wanted an integer"),
        ({"method": "top_fraction", "fraction": 0}, "--fraction is 0, wanted more than 0 and at"),
        ({"method": "top_fraction", "fraction": "0.3"}, "--fraction is '0.3', wanted a number"),
        (
            {"method": "top_fraction", "fraction": 0.3, "fraction_of": "all"},
            "--fraction_of is 'all', wanted available or pool",
        ),
        ({**TWO_STAGES, "first_fraction": 2}, "--first_fraction is 2, wanted more than 0 and at"),
        ({**TWO_STAGES, "fraction_of": "all"}, "--fraction_of is 'all', wanted available or pool"),
        ({**TWO_STAGES, "score_columns": "FLYT"}, "wanted a list: ['FLYT']"),
        (
            {"method": "plain_sum", "score_columns": "vit-l-14"},
            "--score_columns is 'vit-l-14', wanted a list: ['vit-l-14']",
        ),
    ],
)
def test_arguments_are_checked_before_the_pool_is_read(
    tmp_path: Path, options: dict[str, object], words: str
) -> None:
    given: dict[str, object] = {"method": "scs"} | options
    if given["method"] in ("scs", "hcs"):
        given = {"column": "c", "num_samples": 5} | given
    if given["method"] == "scs":
        given = {"repetition_penalty": 0.1} | given
    if given["method"] == "top_fraction":
        given = {"column": "c"} | given
    given |= {"metadata_dir": tmp_path / "not_there", "save_path": tmp_path / "s.npy"}
    method = given.pop("method")
    assert words in refusal(flyt.select, method, **given)


def test_samplers_in_python_refuse_the_same() -> None:
    draws = {"num_samples": 5}
    for limit, words in ((2.5, "2.5, wanted an integer"), (0, "0, wanted 1 or more")):
        message = refusal(flyt.hard_cap_sample, SCORES, **draws, frequency_limit=limit)
        assert message.startswith(f"--frequency_limit is {words}")
    soft = {**draws, "repetition_penalty": 0.1}
    assert "--seed is 'a'" in refusal(flyt.soft_cap_sample, SCORES, **soft, seed="a")
    message = refusal(flyt.soft_cap_sample, SCORES, **soft, sampling_batch_size=31)
    assert message.startswith("--sampling_batch_size is 31, wanted 1 to 30: ")


def test_integers_of_numpy_are_integers() -> None:
    draws = flyt.hard_cap_sample(
        SCORES, num_samples=np.int64(40), frequency_limit=np.uint8(2), seed=np.int32(7)
    )
    again = flyt.hard_cap_sample(SCORES, num_samples=40, frequency_limit=2, seed=7)
    assert draws.counts.tolist() == again.counts.tolist()
    assert int(draws.counts.max()) == 2


def test_all_samplers_print_their_options(capsys: pytest.CaptureFixture[str]) -> None:
    flyt.hard_cap_sample(SCORES, num_samples=40, frequency_limit=5)
    flyt.sample_with_replacement(SCORES, num_samples=1_000)
    assert capsys.readouterr().out.splitlines() == [
        "hard cap sampling: 40 draws, at most 5 of each example",
        "sampling with replacement: 1,000 draws",
    ]


def test_uids_out_of_order(tmp_path: Path) -> None:
    """The resharder would find almost none of them."""
    values = np.zeros(30)
    swapped, repeated = UIDS[[1, 0, *range(2, 30)]], UIDS[[0, 0, *range(2, 30)]]
    assert "uids are not sorted: uid 1, " in refusal(flyt.Scores, swapped, values)
    assert "is below the one before it" in refusal(flyt.Scores, swapped, values)
    assert "is there twice" in refusal(flyt.Scores, repeated, values)
    assert "do not fit uids of shape (30,)" in refusal(flyt.Scores, UIDS, values[:29])
    assert "uids have dtype <U32, wanted 'u8,u8'" in refusal(flyt.Scores, hex_uids(30), values)
    path = tmp_path / "s.npy"
    counts = np.ones(30, np.int32)
    assert "uids are not sorted" in refusal(flyt.Subset(swapped, counts).save, path)
    assert "is there twice" in refusal(write_subset, path, repeated)
    assert list(tmp_path.iterdir()) == []


def test_a_subset_without_a_draw() -> None:
    assert flyt.Subset(UIDS, np.zeros(30, np.int32)).summary() == "no draws"


def test_commas_between_columns(tmp_path: Path) -> None:
    pool = flyt.open_pool(Job(make_pool(), tmp_path).write(1, 1).metadata)
    message = refusal(flyt.plain_sum, pool, score_columns=["a,b"])
    assert "no column 'a,b' in the metadata, which has" in message
    assert "(names are separated by blanks)" in message
