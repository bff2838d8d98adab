"""Columns of an external sort equal those read in memory."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datacomp_flyt.errors import InputError
from datacomp_flyt.pool.external_sort.file_group import FileGroup
from datacomp_flyt.pool.parquet import open_shards
from tests.conftest import ROWS, hex_uids, refusal, take, write_files, write_parquet
from tests.engines.here import Here, Killed
from tests.pool.external_sort.sorted_job import CLIP, POOL, UIDS, VALUES, Job, Read

OLD_PYARROW = int(pa.__version__.split(".")[0]) < 15  # cannot write float16

FilesIn = Callable[[], dict[str, bytes]]
Spoil = Callable[[Job], object]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path).write()


# ----------------------------------------------------------------------------- what is read


@pytest.mark.parametrize("rows", [1, 16, 50, 1000])
@pytest.mark.parametrize("parts", [1, 7])
def test_any_files_and_slices(tmp_path: Path, rows: int, parts: int) -> None:
    job = Job(tmp_path).write(parts, seed=parts)
    names = ("b", CLIP, "a", "b")
    wanted = job.in_memory(*names)
    assert job.in_files(*names, rows=rows) == wanted
    assert len({column for _, column in wanted.columns}) == 3
    assert [kind for kind, _ in wanted.columns] == ["float64", "float32", "float64", "float64"]


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("f2", marks=pytest.mark.skipif(OLD_PYARROW, reason="no float16")),
        "f4", "f8", "i1", "i8", "u2",
    ],
)  # fmt: skip
def test_every_type(tmp_path: Path, kind: str) -> None:
    job = Job(tmp_path).write()
    write_files(job.scores / "more", {"uid": UIDS, "c": np.abs(10 * VALUES).astype(kind)}, 2)
    assert job.in_files("c") == job.in_memory("c")


def test_columns_spread_over_files_with_other_rows(tmp_path: Path) -> None:
    job = Job(tmp_path).write()
    every = {"uid": UIDS, "c": VALUES.astype(np.float32), "d": VALUES * 3, "e": VALUES * 5}
    rows = np.random.default_rng(3).permutation(ROWS).tolist()

    def part(names: str, rows: list[int]) -> dict[str, Any]:
        return take({name: every[name] for name in ("uid", *names)}, rows)

    write_parquet(job.scores / "cd.parquet", part("cd", rows[:50]))
    write_parquet(job.scores / "c.parquet", part("c", rows[50:]))
    write_parquet(job.scores / "d.parquet", part("d", rows[50:]))
    write_files(job.scores / "e", part("e", rows), 4)
    names = ("d", "vit-b-32", "e", "a", "c")
    assert job.in_files(*names) == job.in_memory(*names)


def test_rows_of_other_examples_are_passed_over(job: Job) -> None:
    others = hex_uids(40, "others")
    others[:5] = ["0" * 32, "f" * 32, UIDS[0][:16] + "0" * 16, "f" * 16 + UIDS[0][16:], others[9]]
    write_parquet(job.scores / "z.parquet", {"uid": others, "a": np.full(40, np.nan)})
    assert job.in_files("a") == job.in_memory("a")


def test_files_without_a_row(job: Job) -> None:
    for folder in (job.metadata, job.scores):
        empty = {"uid": pa.array([], pa.string()), "a": pa.array([], pa.float64())}
        write_parquet(folder / "0.parquet", empty)
        write_parquet(folder / "z.parquet", empty)
    assert job.in_files("a", "b") == job.in_memory("a", "b")


def test_several_runs_of_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datacomp_flyt.pool.parquet._BATCH", 9)
    job = Job(tmp_path).write(1)
    with pytest.raises(Killed):
        job.in_files("a", engine=Here(1))
    assert len(list((job.work / "partitioned").iterdir())) == 7  # two batches each
    assert job.in_files("a") == job.in_memory("a")


def test_columns_in_another_order_are_the_same_job(job: Job) -> None:
    assert job.in_files("a", "b") == job.in_memory("a", "b")
    engine = Here()
    assert job.in_files("b", "a", engine=engine) == job.in_memory("b", "a")
    assert engine.names == []


def test_tables_in_another_order_are_the_same_job(job: Job) -> None:
    for name in "cd":
        write_files(job.scores / name, {"uid": UIDS, name: VALUES + len(name)}, 2)
    assert job.in_files("c", "d", "a") == job.in_memory("c", "d", "a")
    engine = Here()
    assert job.in_files("a", "d", "c", engine=engine) == job.in_memory("a", "d", "c")
    assert engine.names == []


# ------------------------------------------------------------------------- what is refused


HALF = st.sampled_from([0, 1, 2**31, 2**63, 2**64 - 1])
UID = st.tuples(HALF, HALF).map(lambda pair: f"{pair[0]:016x}{pair[1]:016x}")
VALUE = st.none() | st.sampled_from([1.5, -2.0, float("nan"), float("-inf"), 0.0])


def kind(message: str) -> str:
    """Return a message up to the row that it names, which may differ."""
    return re.split(r" \(|, (?:the first|one of them) in ", message)[0]


def result(function: Callable[..., Read], **options: Any) -> Read | str:
    try:
        return function("a", **options)
    except InputError as error:
        return kind(str(error))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_is_wrong_is_wrong_in_both(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    job = Job(tmp_path_factory.mktemp("job"))
    uids = data.draw(st.lists(UID, min_size=1, max_size=9, unique=data.draw(st.booleans())))
    scored = data.draw(st.permutations(uids) | st.lists(UID, max_size=9))
    number = data.draw(st.integers(1, 3))
    values = data.draw(st.lists(VALUE, min_size=len(scored), max_size=len(scored)))
    write_files(job.metadata, {"uid": uids}, number)
    job.scores.mkdir()
    for name in range(number):
        column = pa.array(values[name::number], pa.float64())
        part = {"uid": pa.array(scored[name::number], pa.string()), "a": column}
        write_parquet(job.scores / f"{name}.parquet", part)
    for partial, drop in ((False, False), (True, False), (True, True)):
        options = {"partial": partial, "drop": drop}
        assert result(job.in_files, rows=2, **options) == result(job.in_memory, **options)


def pool_again(job: Job) -> str:
    return write_parquet(job.metadata / "z.parquet", take(POOL.metadata, [0, 4, 9]))


def scores_again(job: Job) -> str:
    return write_parquet(job.scores / "z.parquet", {"uid": [UIDS[4].upper()], "a": [0.0]})


def without_a_part(job: Job) -> None:
    (job.scores / "part-00002.parquet").unlink()


def only(uids: list[str], values: Any) -> Spoil:
    def spoil(job: Job) -> None:
        for path in job.scores.iterdir():
            path.unlink()
        write_parquet(job.scores / "z.parquet", {"uid": pa.array(uids, pa.string()), "a": values})

    return spoil


def bad_uid(folder: str) -> Spoil:
    columns = {"uid": ["0" * 32, "0" * 31 + "g"], **{name: [0.5, 1.0] for name in ("a", CLIP)}}
    return lambda job: write_parquet(job.folder / folder / "z.parquet", columns)


def npz_of_others(job: Job) -> None:
    np.savez(job.metadata / "part-00001.npz", b32_img=np.zeros((41, 2), "f2"))


ODD = np.where(np.isin(np.arange(ROWS), [3, 77]), np.inf, VALUES)
NONE = np.zeros(0)
FAULTS: dict[str, tuple[Spoil, list[str]]] = {
    "uid twice": (pool_again, ["metadata/z.parquet row ", "3 such pairs"]),
    "score twice": (scores_again, [f"more than one 'a' for some examples ({UIDS[4]} in ", "z.p"]),
    "part": (without_a_part, ["no 'a' for 30 of the pool's 120 examples (the first is "]),
    "not finite": (only(UIDS, ODD), ["column 'a' has 2 scores", "one of them in", "z.parquet row"]),
    "none": (only([], NONE), ["no 'a' for 120 of the pool's 120"]),
    "others": (only(hex_uids(9, "x"), VALUES[:9]), ["no 'a' for 120 of the pool's 120"]),
    "npz": (npz_of_others, ["part-00001.npz has 41 rows in array 'b32_img' and "]),
    "bad uid": (bad_uid("metadata"), ["metadata/z.parquet row 1 has uid '000", "32 hexadecimal"]),
    "bad score uid": (bad_uid("scores"), ["scores/z.parquet row 1 has uid '0000"]),
}
ALLOWED = {"part": {"partial": True}, "not finite": {"drop": True}}


@pytest.mark.parametrize("case", FAULTS)
@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("drop", [False, True])
def test_the_same_sentences_as_in_memory(job: Job, case: str, partial: bool, drop: bool) -> None:
    spoil, named = FAULTS[case]
    spoil(job)
    options = {"partial": partial, "drop": drop}
    if ALLOWED.get(case, {"never": True}).items() <= options.items():
        assert job.in_files("a", **options) == job.in_memory("a", **options)
        return
    message = refusal(job.in_files, "a", **options)
    assert kind(message) == kind(refusal(job.in_memory, "a", **options))
    for text in named:
        assert text in message
    assert refusal(job.in_files, "a", **options) == message  # again, from the notes


@pytest.mark.parametrize("partial", [False, True])
def test_a_column_that_some_metadata_files_lack(job: Job, partial: bool) -> None:
    path = job.metadata / "part-00001.parquet"
    write_parquet(path, {"uid": pq.read_table(path)["uid"]})
    if partial:
        wanted = job.in_memory(CLIP, partial=True)
        assert np.isnan(np.frombuffer(wanted.columns[0][1], "f4")).sum() == 40
        assert job.in_files(CLIP, partial=True) == wanted
        return
    message = refusal(job.in_memory, CLIP)
    assert f"has no {CLIP!r} for 40 of the pool's 120 examples" in message
    assert refusal(job.in_files, CLIP) == message


def test_files_are_read_until_the_rows_are_found(job: Job) -> None:
    shards = tuple(open_shards(str(job.metadata), "--metadata_dir", 1))
    missing = replace(shards[1], path=str(job.folder / "missing.parquet"))
    first = pq.read_table(shards[0].path)["uid"].to_pylist()
    rows = FileGroup("pool", (shards[0], missing), {}).rows_of(first[7])
    assert next(rows) == f"{shards[0].path} row 7"
    with pytest.raises(InputError, match=r"missing\.parquet"):
        next(rows)


def test_the_smallest_uid_is_named_with_its_place(job: Job) -> None:
    first = min(UIDS[3], UIDS[77])
    only(UIDS, ODD)(job)
    place = f"one of them in {job.scores / 'z.parquet'} row {UIDS.index(first)}:"
    assert place in refusal(job.in_files, "a")
    only(UIDS[5:], VALUES[5:])(job)
    job = Job(job.folder)
    for path in sorted(job.work.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert f"5 of the pool's 120 examples (the first is {min(UIDS[:5])})" in refusal(
        job.in_files, "a"
    )


def test_what_is_allowed_later_is_not_sorted_again(job: Job) -> None:
    only(UIDS[5:], ODD[5:])(job)
    assert "missing" in refusal(job.in_files, "a", partial=True)
    engine = Here()
    wanted = job.in_memory("a", partial=True, drop=True)
    assert job.in_files("a", partial=True, drop=True, engine=engine) == wanted
    assert engine.names == []


def test_a_pool_without_rows(tmp_path: Path) -> None:
    job = Job(tmp_path)
    for folder in (job.metadata, job.scores):
        folder.mkdir()
        empty = {"uid": pa.array([], pa.string()), "a": pa.array([], pa.float64())}
        write_parquet(folder / "a.parquet", empty)
    message = refusal(job.in_files, "a")
    assert message == refusal(job.in_memory, "a")
    assert not job.work.exists()


CHANGES: dict[str, Callable[[Job], object]] = {
    "touched": lambda job: os.utime(job.scores / "part-00001.parquet", (1, 1)),
    "a file less": without_a_part,
    "a file more": pool_again,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.parametrize("most", [3, None])
def test_files_that_have_changed(
    job: Job, files_in: FilesIn, change: Callable[[Job], object], most: int | None
) -> None:
    if most:
        with pytest.raises(Killed):
            job.in_files("a", engine=Here(most))
    else:
        job.in_files("a")
    change(job)
    before = files_in()
    message = refusal(job.in_files, "a", partial=True)
    assert f"--work_dir {job.work} holds a job on other files" in message
    assert files_in() == before


@pytest.mark.parametrize("names", [("b",), ("a", "b"), ("a", CLIP)])
def test_other_columns_are_another_job(job: Job, names: tuple[str, ...]) -> None:
    job.in_files("a")
    assert "other files, images or columns" in refusal(job.in_files, *names)
    with pytest.raises(InputError, match="other files, images or columns"):
        job.in_files("a", rows=15)  # the same number of buckets, and other parts
    assert job.in_files("a") == job.in_memory("a")


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/nowhere"])
def test_a_folder_that_cannot_be_made(job: Job, place: str) -> None:
    (job.folder / "file").write_bytes(b"a file")

    class Elsewhere(Job):
        work = job.folder / place  # type: ignore[assignment]

    assert f"--work_dir {job.folder / place}" in refusal(Elsewhere(job.folder).in_files, "a")
