"""A tar that was empty among others is read when it is mended; what only looks empty is damaged."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("torch")
pytest.importorskip("open_clip")

from datacomp_flyt.engines.until_usable import has_rows
from datacomp_flyt.tars.nothing_usable import MemberCounts
from datacomp_flyt.tars.samples import UnreadableShard, read_tar
from datacomp_flyt.tars.shards import Stream, list_shards
from tests.conftest import refusal
from tests.flyt.tars import write_tar
from tests.scorers.base.image_tars import sample
from tests.scorers.base.unusable_tars import ends, finished, write_members


@pytest.mark.parametrize("command", ["embed", "score"])
def test_an_empty_tar_is_looked_at_again(
    tmp_path: Path,
    words: dict[str, list[object]],
    command: str,
) -> None:
    write_tar(tmp_path / "tars" / "0.tar", [])
    write_tar(tmp_path / "tars" / "1.tar", [sample(1)])
    ends(words[command], 0)
    other = (tmp_path / "out" / "1.parquet").stat().st_ino
    ends(words[command], 0)
    assert pq.read_table(tmp_path / "out" / "0.parquet").num_rows == 0
    write_tar(tmp_path / "tars" / "0.tar", [sample(2), sample(3)])
    ends(words[command], 0)
    assert finished(tmp_path) == ["0.parquet", "1.parquet"]
    assert pq.read_table(tmp_path / "out" / "0.parquet").num_rows == 2
    assert (tmp_path / "out" / "1.parquet").stat().st_ino == other


def test_results_without_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    for rows in (0, 1, 20_000):
        pq.write_table(pa.table({"x": [str(row) for row in range(rows)]}), path)
        assert has_rows(path) is (rows > 0)
    path.write_bytes(b"x")
    assert "cannot be read as parquet" in refusal(has_rows, path)


@pytest.mark.parametrize(
    ("size", "damaged"), [(512, False), (10_240, False), (10_241, True), (1 << 20, True)]
)
def test_a_file_of_zeros(tmp_path: Path, size: int, damaged: bool) -> None:
    """A download that made room and never came; an empty tar is one record of zeros."""
    path = tmp_path / "0.tar"
    path.write_bytes(bytes(size))
    if not damaged:
        assert list(read_tar(str(path))) == []
        return
    with pytest.raises(UnreadableShard, match="nothing but zeros"):
        list(read_tar(str(path)))


@pytest.mark.parametrize(
    "name", ["__x__/a.jpg", "__meta__", "a", ".jpg", "a/", "._a.jpg", "/a", "../a"]
)
def test_members_are_seen(tmp_path: Path, name: str) -> None:
    """So that a tar of such members alone is not taken for an empty one."""
    path, seen = write_members(tmp_path / "0.tar", [(name, b"")]), MemberCounts()
    assert list(read_tar(str(path), seen)) == []
    assert seen.members == 1
    assert tarfile.is_tarfile(path)


@pytest.mark.parametrize(
    "where",
    [
        "pipe:touch ran", "pipe://touch ran", "pipe:/usr/bin/touch ran", "pipe::touch ran://",
        "pipe::x://touch ran", "pipe://{touch,ran}", "pipe:touch ran;://x.tar",
    ],
)  # fmt: skip
def test_a_command_that_looks_like_an_address(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "runs a command" in refusal(list_shards, where, "--shards_dir")
    assert all(isinstance(shard, Stream) for shard in list_shards(where, "--x", commands=True))
    assert not os.listdir(tmp_path)
