"""Readers of a score column's folder find its tables and nothing else, finished or not."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

pytest.importorskip("torch")

from datacomp_flyt.files.locks import lock_outputs
from datacomp_flyt.files.output_files import create_temporary
from datacomp_flyt.files.settings_file import SETTINGS_FILE, check_settings
from datacomp_flyt.scorers.clip_score import ClipScore
from datacomp_flyt.scorers.norm_sim_d import NormSimD
from datacomp_flyt.scorers.vas import Vas
from tests.conftest import refusal
from tests.scorers.base.inline import Killed, KilledEngine, run, table_bytes, write_pool
from tests.scorers.made_pairs import pairs

MAKE: list[Callable[[], Any]] = [
    lambda: ClipScore(source="npz"),
    Vas,
    lambda: NormSimD(fraction=0.3, num_rounds=12, candidates=9),
]
READERS: dict[str, Callable[[Path], Any]] = {
    "pandas": lambda folder: pd.read_parquet(folder).columns.tolist(),
    "pyarrow.dataset": lambda folder: ds.dataset(folder, format="parquet").to_table().column_names,
    "pyarrow.parquet": lambda folder: pq.read_table(folder).column_names,
}


@pytest.fixture
def metadata(tmp_path: Path) -> Path:
    write_pool(tmp_path / "metadata", pairs(9), [3, 3, 3])
    return tmp_path / "metadata"


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("make", MAKE)
def test_a_finished_column(
    metadata: Path, tmp_path: Path, make: Callable[[], Any], reader: str
) -> None:
    scorer = make()
    run(scorer, metadata, tmp_path / "scores")
    assert READERS[reader](tmp_path / "scores" / scorer.columns[0]) == ["uid", *scorer.columns]
    assert len(pd.read_parquet(tmp_path / "scores" / scorer.columns[0])) == 9


def states(scorer: Any, metadata: Path, scores: Path) -> Iterator[Path]:
    """The column's folder, killed after 1, 2, ... shards of a pass."""
    for after in range(1, 9):
        with pytest.raises(Killed):
            run(scorer, metadata, scores / str(after), KilledEngine(after))
        yield scores / str(after) / scorer.columns[0]


@pytest.mark.parametrize("reader", READERS)
def test_a_column_whose_job_was_killed(metadata: Path, tmp_path: Path, reader: str) -> None:
    """With the state of a pass, a lock and half a table."""
    for folder in states(
        NormSimD(fraction=0.3, num_rounds=12, candidates=9), metadata, tmp_path / "scores"
    ):
        os.close(create_temporary(folder / "x.parquet")[0])
        hidden = [path.name for path in folder.iterdir() if path.suffix != ".parquet"]
        assert hidden
        assert all(name.startswith(("_", ".")) for name in hidden)
        if list(folder.glob("*.parquet")):
            with lock_outputs(folder):
                assert READERS[reader](folder) == ["uid", "norm_sim_d"]
        else:
            assert not ds.dataset(folder, format="parquet").files


def test_columns_side_by_side(metadata: Path, tmp_path: Path) -> None:
    for make in MAKE:
        run(make(), metadata, tmp_path / "scores")
    found = ds.dataset(tmp_path / "scores", format="parquet").files
    assert len(found) == 9
    assert all(name.endswith(".parquet") for name in found)


def as_older_releases_had_it(folder: Path) -> None:
    for name in (SETTINGS_FILE, "_passes"):
        if (folder / name).exists():
            (folder / name).rename(folder / name.removeprefix("_"))


@pytest.mark.parametrize("after", [1, 4, 8])
@pytest.mark.parametrize("make", MAKE[1:])
def test_older_names_are_read(
    metadata: Path, tmp_path: Path, make: Callable[[], Any], after: int
) -> None:
    """A job that an older release began is gone on with, and ends as any other."""
    run(make(), metadata, tmp_path / "whole")
    with contextlib.suppress(Killed):
        run(make(), metadata, tmp_path / "scores", KilledEngine(after))
    folder = tmp_path / "scores" / make().columns[0]
    before = len(list(folder.glob("_passes/*/*.npz")))
    as_older_releases_had_it(folder)
    engine = KilledEngine(99)
    run(make(), metadata, tmp_path / "scores", engine)
    assert table_bytes(tmp_path / "scores") == table_bytes(tmp_path / "whole")
    if before:
        again = KilledEngine(99)
        run(make(), metadata, tmp_path / "again", again)
        assert engine.left > again.left, "what was known was computed again"


@pytest.mark.parametrize("name", ["settings.json", "_settings.json"])
@pytest.mark.parametrize("content", [{"a": 2}, {"theme": "dark"}, [], "{"])
def test_settings_of_others_stay(tmp_path: Path, name: str, content: Any) -> None:
    """A folder with another program's settings.json is refused, and the file keeps its name."""
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    before = path.read_bytes()
    assert str(tmp_path) in refusal(check_settings, tmp_path, {"a": 1}, "give another")
    assert [found.name for found in tmp_path.iterdir()] == [name]
    assert path.read_bytes() == before


def test_settings_without_results_are_replaced(tmp_path: Path) -> None:
    patterns = ("*.parquet", "round_*/**/*")
    check_settings(tmp_path, {"a": 1}, "give another", patterns)
    (tmp_path / "round_0" / "runs").mkdir(parents=True)
    check_settings(tmp_path, {"a": 2}, "give another", patterns)
    assert json.loads((tmp_path / SETTINGS_FILE).read_text()) == {"a": 2}
    (tmp_path / "round_0" / "runs" / "epoch_1.pt").touch()
    check_settings(tmp_path, {"a": 2}, "give another", patterns)
    said = refusal(check_settings, tmp_path, {"a": 1}, "give another", patterns)
    assert "made with a 2, now it is 1" in said
    assert json.loads((tmp_path / SETTINGS_FILE).read_text()) == {"a": 2}


@pytest.mark.parametrize("content", ['{"theme": "dark"}', "[]", "{"])
def test_settings_of_others_are_not_replaced(tmp_path: Path, content: str) -> None:
    (tmp_path / SETTINGS_FILE).write_text(content)
    refusal(check_settings, tmp_path, {"a": 1}, "give another", ("*.parquet",))
    assert (tmp_path / SETTINGS_FILE).read_text() == content


def test_the_older_name_gives_way(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text('{"a": 1}')
    check_settings(tmp_path, {"a": 1}, "give another")
    assert [path.name for path in tmp_path.iterdir()] == [SETTINGS_FILE]
    check_settings(tmp_path, {"a": 1}, "give another")
    (tmp_path / "settings.json").write_text('{"of": "another program"}')
    check_settings(tmp_path, {"a": 1}, "give another")
    assert (tmp_path / "settings.json").read_text() == '{"of": "another program"}'


def test_other_settings_of_an_older_release_are_refused(metadata: Path, tmp_path: Path) -> None:
    run(ClipScore(source="npz"), metadata, tmp_path / "scores")
    as_older_releases_had_it(tmp_path / "scores" / "vit-b-32")
    before = table_bytes(tmp_path)
    assert "source" in refusal(run, ClipScore(source="metadata"), metadata, tmp_path / "scores")
    assert table_bytes(tmp_path) == before
