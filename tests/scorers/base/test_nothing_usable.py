"""Shards of which no sample can be used: a sentence, exit code 2, and no finished mark."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("torch")
pytest.importorskip("open_clip")

from datacomp_flyt.engines import until_usable
from datacomp_flyt.engines.until_usable import UntilUsable, Usable
from datacomp_flyt.errors import NothingUsable
from datacomp_flyt.flyt.shard_reader import ShardReader
from datacomp_flyt.report.examples import find_candidates, read_pictures
from datacomp_flyt.scorers.clip_score import ClipScore
from datacomp_flyt.scorers.linear_classifier.training_rows import RandomRows, find_embeddings
from datacomp_flyt.self_filtering.initial_subset import read_uids
from datacomp_flyt.tars.samples import Sample, Skip, caption, decode, stored_image, stored_uid
from tests.conftest import refusal
from tests.flyt.tars import write_tar
from tests.scorers.base.image_tars import sample
from tests.scorers.base.inline import run as run_scorer
from tests.scorers.base.inline import write_pool
from tests.scorers.base.unusable_tars import ROWS, UNUSABLE, ends, finished, write_members

KINDS = list(UNUSABLE)


@pytest.mark.parametrize(
    ("command", "kind"),
    [*(("embed", kind) for kind in KINDS), *(("score", kind) for kind in KINDS[::4])],
)
def test_such_a_tar_is_no_finished_shard(
    tmp_path: Path,
    words: dict[str, list[object]],
    kind: str,
    command: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write_members(tmp_path / "tars" / "0.tar", UNUSABLE[kind]())
    ends(words[command], 2)
    said = capsys.readouterr().err
    assert f"{path} has no sample that can be used" in said
    assert "seen were" in said
    assert "wanted are an image" in said
    assert finished(tmp_path) == []
    write_tar(path, [sample(number) for number in range(ROWS)])
    ends(words[command], 0)
    assert finished(tmp_path) == ["0.parquet"]
    assert pq.read_table(tmp_path / "out" / "0.parquet").num_rows == ROWS


@pytest.mark.parametrize("command", ["embed", "score"])
def test_the_sentence_says_what_was_seen(
    tmp_path: Path,
    words: dict[str, list[object]],
    command: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And the other shards are done."""
    write_members(tmp_path / "tars" / "0.tar", UNUSABLE["images first"]())
    write_tar(tmp_path / "tars" / "1.tar", [sample(7)])
    ends(words[command], 2)
    said = capsys.readouterr().err
    assert "seen were 9 members: 3 .jpg, 3 .json, 3 .txt; no two neighbours share a key" in said
    assert finished(tmp_path) == ["1.parquet"]


@pytest.mark.parametrize("command", ["embed", "score"])
def test_tars_of_lost_shards_are_finished(
    tmp_path: Path,
    words: dict[str, list[object]],
    command: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As img2dataset writes them when no download of a shard comes to an end."""
    for name in ("0", "2"):
        write_tar(tmp_path / "tars" / f"{name}.tar", [])
    ends(words[command], 2)  # but not where all are like that
    assert "2 shards hold no sample at all, so nothing was written" in capsys.readouterr().err
    assert finished(tmp_path) == []
    write_tar(tmp_path / "tars" / "1.tar", [sample(1)])
    ends(words[command], 0)
    assert finished(tmp_path) == ["0.parquet", "1.parquet", "2.parquet"]
    if command == "embed":
        assert "2 tars have no member" in capsys.readouterr().out
    write_tar(tmp_path / "tars" / "3.tar", [])
    ends(words[command], 0)
    assert len(finished(tmp_path)) == 4


def test_what_is_kept_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results come in any order; after a thousand without a usable row there is no more waiting."""
    written: list[str] = []

    def write(name: str, result: int) -> int:
        written.append(name)
        return result

    def count(result: int) -> Usable:
        return Usable(5, result, {"blank": 5 - result})

    keep = UntilUsable(write, count, False, "--x")
    assert [keep(name, result) for name, result in (("a", 0), ("b", 0), ("c", 4))] == [0, 0, 4]
    assert sorted(written) == ["a", "b", "c"]
    assert keep("d", 0) == 0
    keep.finish()
    assert written[-1] == "d"
    monkeypatch.setattr(until_usable, "_MOST", 3)
    keep = UntilUsable(write, count, False, "--x")
    said = refusal(lambda: [keep(name, 0) for name in "abcdefg"])
    assert (
        "its first 3 shards hold 15 rows, none usable (blank: 15), so nothing was written" in said
    )
    keep = UntilUsable(write, count, False, "--x", usable="with a score")
    assert keep("a", 0) == 0
    said = refusal(keep.finish)
    assert "its 1 shard holds 5 rows, none with a score (blank: 5), so nothing" in said
    found = UntilUsable(write, count, True, "--x")
    assert found("e", 0) == 0
    assert written[-1] == "e"


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_metadata_without_a_usable_embedding(tmp_path: Path, value: float) -> None:
    arrays = {name: np.full((6, 4), value, np.float32) for name in ("b32_img", "b32_txt")}
    write_pool(tmp_path / "metadata", arrays, [4, 2])
    scorer = ClipScore(source="npz")
    said = refusal(run_scorer, scorer, tmp_path / "metadata", tmp_path / "scores")
    assert "2 shards hold 6 rows, none with a score (" in said
    assert not list((tmp_path / "scores").rglob("*.parquet"))
    arrays["b32_img"][5] = arrays["b32_txt"][5] = 0.5  # one row is enough
    write_pool(tmp_path / "metadata", arrays, [4, 2])
    assert run_scorer(scorer, tmp_path / "metadata", tmp_path / "scores").num_scored == 2


@pytest.mark.parametrize("kind", KINDS)
def test_training_stops(tmp_path: Path, kind: str) -> None:
    """That is, its reader, which draws shards without end."""
    shards = [
        str(write_members(tmp_path / f"{number}.tar", UNUSABLE[kind]())) for number in range(3)
    ]

    def select(sample: Sample) -> Any:
        if len(stored_uid(sample)) != 32:
            raise Skip("uid not in the feature table")
        return decode(stored_image(sample), lambda image: caption(sample))

    pairs = [(shard, select) for shard in shards]
    with pytest.raises(NothingUsable, match=r"no example of its 3 shards can be used.*: seen were"):
        next(iter(ShardReader(pairs, random.Random(0), Counter(), "data")))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "caption" not in kind])
def test_report_and_self_filtering_stop(tmp_path: Path, kind: str) -> None:
    """Pictures without a caption are shown; and whether one can be decoded is seen when it is."""
    path = str(write_members(tmp_path / "0.tar", UNUSABLE[kind]()))

    def show() -> None:
        candidates = find_candidates([path], 1, 0, 1, "--shards_dir x")
        read_pictures(candidates, np.arange(len(candidates.uids)), 1)

    said = refusal(show)
    assert "seen were" in said or kind == "uid of another kind"
    if "images" not in kind:
        assert refusal(read_uids, str(tmp_path))


def test_sorted_pictures_with_a_table_beside_them(tmp_path: Path) -> None:
    """The table says that they are there, and so they are, but apart from their uids."""
    path = write_members(tmp_path / "0.tar", UNUSABLE["images first"]())
    uids = [sample(number)["json"].decode().split('"')[3] for number in range(ROWS)]
    table = pa.table({"uid": uids, "status": ["success"] * ROWS})
    pq.write_table(table, tmp_path / "0.parquet")
    candidates = find_candidates([str(path)], 1, 0, 1, "--shards_dir x")
    said = refusal(read_pictures, candidates, np.arange(ROWS), 1)
    assert "no example to be shown has a picture" in said
    assert "no two neighbours share a key" in said


def test_a_classifier_is_not_trained_on_nothing(tmp_path: Path) -> None:
    np.savez(tmp_path / "0.npz", x=np.full((4, 3), np.nan, np.float32))
    files = find_embeddings([str(tmp_path)], ["x"], "--positives")
    said = refusal(RandomRows, files, np.random.default_rng(0), 10, "--positives")
    assert "--positives holds no usable example" in said
