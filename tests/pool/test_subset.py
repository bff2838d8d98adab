"""Writing a subset and checking one."""

from __future__ import annotations

import pickle
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datacomp_flyt.files.output_files import atomic_write, check_save_path
from datacomp_flyt.pool import subset
from datacomp_flyt.pool.subset import (
    check_subset_file,
    describe_counts,
    describe_training,
    write_subset,
)
from tests.conftest import hex_uids, refusal, sorted_uids
from tests.oracles.selection import subset_array, uid_array

FilesIn = Callable[[], dict[str, bytes]]
POOL_UIDS = sorted_uids(hex_uids(40))
PAIRS = POOL_UIDS.tolist()


def numpy_bytes(array: np.ndarray, path: Path) -> bytes:
    np.save(path, array)
    return path.with_suffix(".npy").read_bytes()


# ------------------------------------------------------------------------------- writing


@pytest.mark.parametrize(
    "counts",
    [None, [1] * 40, [0] * 20 + [3] * 20, [row % 4 for row in range(40)], [0] * 39 + [70]],
)
def test_bytes_are_those_of_numpy_save(tmp_path: Path, counts: Sequence[int] | None) -> None:
    wanted = subset_array(PAIRS, counts or [1] * 40)
    path = tmp_path / "subset.npy"
    write_subset(path, POOL_UIDS, None if counts is None else np.array(counts, np.int32))
    assert path.read_bytes() == numpy_bytes(wanted, tmp_path / "wanted")
    assert np.array_equal(np.load(path), wanted)


def test_a_subset_longer_than_a_block(tmp_path: Path) -> None:
    number = (1 << 20) + 7
    uids = np.zeros(number, POOL_UIDS.dtype)
    uids["f1"] = np.arange(number)
    counts = np.ones(number, np.int32)
    counts[[0, 1 << 20, number - 1]] = 3, 0, 2
    write_subset(tmp_path / "subset.npy", uids, counts)
    wanted = np.repeat(uids, counts)
    assert (tmp_path / "subset.npy").read_bytes() == numpy_bytes(wanted, tmp_path / "wanted")


@pytest.mark.parametrize("block", [1, 7, 40, 1 << 20])
def test_draws_are_cut_anywhere(
    tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = np.array([0, 100, 0, 3, 1] * 8, np.int32)
    wanted = numpy_bytes(subset_array(PAIRS, counts.tolist()), tmp_path / "wanted")
    monkeypatch.setattr(subset, "_BLOCK", block)
    write_subset(tmp_path / "subset.npy", POOL_UIDS, counts)
    assert (tmp_path / "subset.npy").read_bytes() == wanted


def test_many_draws_are_not_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subset, "_BLOCK", 1 << 10)
    counts = np.array([0] * 39 + [1 << 18], np.int32)
    tracemalloc.start()
    try:
        write_subset(tmp_path / "subset.npy", POOL_UIDS, counts)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / "subset.npy").stat().st_size == 128 + 16 * (1 << 18)
    assert peak < 1 << 18


def test_writing_is_all_or_nothing(tmp_path: Path, files_in: FilesIn) -> None:
    path = tmp_path / "subset.npy"
    path.write_bytes(b"the old one")
    too_short = np.ones(39, np.int32)
    with pytest.raises(ValueError, match="broadcast"):
        write_subset(path, POOL_UIDS, too_short)
    assert files_in() == {"subset.npy": b"the old one"}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("old", [None, b"old"])
def test_a_failure_inside_leaves_what_was_there(
    tmp_path: Path, files_in: FilesIn, error: type[BaseException], old: bytes | None
) -> None:
    path = tmp_path / "out"
    if old is not None:
        path.write_bytes(old)
    before = files_in()
    during: dict[str, bytes] = {}

    def fail() -> None:
        with atomic_write(path) as file:
            file.write(b"half")
            file.flush()
            during.update(files_in())
            raise error

    with pytest.raises(error):
        fail()
    assert files_in() == before
    assert len(during) == len(before) + 1
    assert during.get("out") == old


def test_success_replaces_whole_and_with_usual_rights(tmp_path: Path, files_in: FilesIn) -> None:
    path, usual = tmp_path / "out", tmp_path / "usual"
    path.write_bytes(b"old and longer")
    usual.touch()
    with atomic_write(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old and longer"
    assert files_in() == {"out": b"new", "usual": b""}
    assert path.stat().st_mode == usual.stat().st_mode


def test_the_folder_of_a_save_path_is_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "out.npy"
    assert check_save_path(str(path), "--save_path") == path
    assert path.parent.is_dir()
    assert not path.exists()


@pytest.mark.parametrize(
    ("path", "said"),
    [(".", "is a folder"), ("file/x.npy", "cannot be made"), ("s3://b/x", "cloud")],
)
def test_save_paths_that_are_refused(tmp_path: Path, path: str, said: str) -> None:
    (tmp_path / "file").touch()
    where = path if "://" in path else str(tmp_path / path)
    message = refusal(check_save_path, where, "--save_scores")
    assert message.startswith(f"--save_scores {Path(where) if '://' not in path else where}")
    assert said in message


# ------------------------------------------------------------------------------ checking


def saved(folder: Path, array: np.ndarray) -> Path:
    np.save(folder / "subset.npy", array)
    return folder / "subset.npy"


def problem(path: Path, pool: np.ndarray | None = POOL_UIDS) -> str:
    """The only problem that is found."""
    (found,) = check_subset_file(path, pool_uids=pool).problems
    return found


def test_facts_of_a_valid_subset_by_hand(tmp_path: Path) -> None:
    counts = [1, 1, 1, 2, 3, 7, 12] + [0] * 33  # 27 draws; 27**2 / 209 = 3.488
    path = saved(tmp_path, subset_array(PAIRS, counts))
    report = check_subset_file(path, pool_uids=POOL_UIDS, num_samples=100)
    assert report.problems == []
    assert report.facts == [
        "27 draws of 7 examples, each at most 12 times",
        "effective number of examples 3",
        "drawn once: 3; 2 times: 1; 3 times: 1; 5-9 times: 1; 10-12 times: 1",
        "training sees 100 samples: on average each draw 3.7 times, each example 14.3 "
        "times, the one drawn most 44.4 times",
        "all in the pool of 40 examples, of which they are 17.5%",
    ]
    assert check_subset_file(path).facts == report.facts[:3]
    assert (
        check_subset_file(path, num_samples=26)
        .facts[3]
        .endswith("the one drawn most 11.6 times; some draws are never seen")
    )


def test_a_pool_larger_than_the_scale_is_told(tmp_path: Path) -> None:
    path = saved(tmp_path, POOL_UIDS[:5])
    assert len(check_subset_file(path, pool_uids=POOL_UIDS, num_samples=len(POOL_UIDS)).facts) == 5
    report = check_subset_file(path, pool_uids=POOL_UIDS, num_samples=len(POOL_UIDS) - 1)
    assert report.facts[5] == ("the pool is larger than this scale's 39: is it another scale's?")
    assert report.problems == []


@pytest.mark.parametrize(
    ("counts", "num_samples", "said"),
    [
        ([1] * 8, 8, "each draw once, each example once, the one drawn most once"),
        ([8], 8, "each draw once, each example 8 times, the one drawn most 8 times"),
        (
            [1, 3],
            1_000_000,
            "each draw 250,000 times, each example 500,000 times, the one drawn most 750,000",
        ),
        (
            [1000, 999],
            2,
            "each draw 0.001 times, each example once, the one drawn most once; some draws",
        ),
        ([2**31 - 1] * 2, 2**32 - 2, "each draw once, each example 2,147,483,647 times, the"),
    ],
)
def test_how_often_training_sees_an_example(counts: list[int], num_samples: int, said: str) -> None:
    assert said in describe_training(np.array(counts, np.int32), num_samples)


@pytest.mark.parametrize(
    ("counts", "effective", "spans"),
    [
        ([1], "1", "drawn once: 1"),
        ([1] * 5000, "5,000", "drawn once: 5,000"),
        ([2, 2, 2], "3", "2 times: 3"),
        ([4, 5], "2", "4 times: 1; 5 times: 1"),
        ([1, 99], "1", "50-99 times: 1"),
        ([100, 999], "1", "100-999 times: 2"),
        ([1000, 10**9, 2 * 10**9], "2", "1000-2000000000 times: 3"),
    ],
)
def test_effective_number_and_histogram(counts: list[int], effective: str, spans: str) -> None:
    facts = describe_counts(np.array(counts, np.int32))
    assert facts[0].startswith(f"{sum(counts):,} draws of {len(counts):,} examples")
    assert facts[1] == f"effective number of examples {effective}"
    assert facts[2].endswith(spans)


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
def test_facts_of_a_pool_are_those_of_what_was_drawn(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = np.random.default_rng(3).poisson(0.7, 100).astype(np.int32) ** 3
    drawn = counts[counts > 0]
    wanted = describe_counts(np.sort(drawn))
    assert f" of {len(drawn)} examples" in wanted[0]
    monkeypatch.setattr(subset, "_BLOCK", block)
    assert describe_counts(counts) == wanted


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=40, max_size=40).filter(any))
def test_whatever_is_written_is_valid(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int]
) -> None:
    path = tmp_path_factory.getbasetemp() / "written.npy"
    write_subset(path, POOL_UIDS, np.array(counts, np.int32))
    report = check_subset_file(path, pool_uids=POOL_UIDS)
    assert report.problems == []
    drawn = [count for count in counts if count]
    effective = sum(drawn) ** 2 / sum(count**2 for count in drawn)
    assert report.facts[1] == f"effective number of examples {effective:,.0f}"


SWAPPED_LOW = uid_array([(1, 5), (1, 4), (2, 0)])
SWAPPED_HIGH = uid_array([(2**63, 0), (1, 9)])


@pytest.mark.parametrize(
    ("array", "entry"),
    [(POOL_UIDS[::-1], 1), (POOL_UIDS[[0, 1, 2, 2, 1, 5]], 4), (SWAPPED_LOW, 1), (SWAPPED_HIGH, 1)],
)
def test_unsorted(tmp_path: Path, array: np.ndarray, entry: int) -> None:
    assert f"is not sorted (entry {entry} " in problem(saved(tmp_path, array), None)
    assert check_subset_file(saved(tmp_path, np.sort(array))).problems == []


@pytest.mark.parametrize(
    "array",
    [
        np.arange(5),
        np.array(hex_uids(3)),
        np.zeros(3, "i8,i8"),
        np.zeros(3, ">u8,>u8"),
        np.zeros(3, [("high", "u8"), ("low", "u8")]),
        np.zeros((3, 2), np.uint64),
        POOL_UIDS.reshape(8, 5),
        POOL_UIDS[0],
    ],
    ids=lambda array: f"{array.dtype}{list(array.shape)}",
)
def test_wrong_dtype_or_shape(tmp_path: Path, array: np.ndarray) -> None:
    found = problem(saved(tmp_path, array))
    assert f"has dtype {array.dtype}, shape {array.shape}" in found


def test_empty(tmp_path: Path) -> None:
    assert problem(saved(tmp_path, POOL_UIDS[:0])) == "is empty"


@pytest.mark.parametrize("number", [1, 2, 30])
def test_uids_that_are_not_in_the_pool(tmp_path: Path, number: int) -> None:
    unknown_uids = sorted_uids(hex_uids(number, "strangers"))
    both = np.sort(np.concatenate([POOL_UIDS, unknown_uids, unknown_uids]))
    found = problem(saved(tmp_path, both))
    assert f"has {number} uids that are not in the pool" in found
    assert f"{int(unknown_uids[0]['f0']):016x}{int(unknown_uids[0]['f1']):016x}" in found
    assert check_subset_file(saved(tmp_path, both)).problems == []  # nothing to compare with


NEAR = [(5, 0), (5, 3), (5, 7), (9, 1)]


@pytest.mark.parametrize("low", range(9))
@pytest.mark.parametrize("high", [4, 5, 6, 9, 10])
def test_a_first_half_that_the_pool_has_is_not_enough(tmp_path: Path, high: int, low: int) -> None:
    report = check_subset_file(saved(tmp_path, uid_array([(high, low)])), pool_uids=uid_array(NEAR))
    assert bool(report.problems) == ((high, low) not in NEAR)


def pickled(path: Path) -> None:
    np.save(path, np.array([{"a": 1}], object), allow_pickle=True)


def zipped(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, subset=POOL_UIDS)


def cut(path: Path) -> None:
    np.save(path, POOL_UIDS)
    path.write_bytes(path.read_bytes()[:-8])


NOT_NPY: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "folder": lambda path: path.mkdir(),
    "empty file": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("0123456789abcdef\n"),
    "pickled object array": pickled,
    "pickle": lambda path: path.write_bytes(pickle.dumps([1, 2])),
    "npz": zipped,
    "damaged zip": lambda path: path.write_bytes(b"PK\x03\x04 and no more"),
    "truncated npy": cut,
    "header only": lambda path: path.write_bytes(b"\x93NUMPY\x01\x00"),
    "header open": lambda path: path.write_bytes(b"\x93NUMPY\x01\x00\x05\x00{(((\n"),
}


@pytest.mark.parametrize("make", NOT_NPY.values(), ids=NOT_NPY.keys())
def test_what_is_no_npy_is_refused(tmp_path: Path, make: Callable[[Path], object]) -> None:
    path = tmp_path / "subset.npy"
    make(path)
    assert str(path) in refusal(check_subset_file, path, pool_uids=POOL_UIDS)
