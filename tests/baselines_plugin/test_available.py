"""Selection from the available images equals selection from a pool of these images only."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datacomp_flyt.scorers import save_glu_head
from datacomp_flyt.selection.registry import METHODS
from tests.baselines_plugin.finished_run import run_dir
from tests.baselines_plugin.job import Job, assert_refused, in_process
from tests.baselines_plugin.large_pool import (
    EXAMPLES,
    GAPS,
    POOL,
    SCS,
    TOP,
    TWO_STAGE,
    gappy_scores,
    outputs,
    small_slices,
)
from tests.baselines_plugin.samplings import IN_MEMORY_ONLY, sampled
from tests.conftest import hex_uids, make_pool, sorted_uids, take, write_parquet
from tests.scorers.base.made import made_embeddings, made_head, write_npz
from tests.tars.made_downloads import FAILED, write_shard

QUICK = {"m_flyt", "neg_clip_loss_norm_sim"}
AVAILABLE = np.random.default_rng(7).random(EXAMPLES) > 0.25
NUM_MISSING = int(np.count_nonzero(~AVAILABLE))


def rows_of(columns: dict[str, object], kept: set[str]) -> list[int]:
    return [row for row, uid in enumerate(columns["uid"]) if uid in kept]  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, Job, Path]:
    """Write a pool, the pool of its available rows, and the list of available images."""
    scores = gappy_scores()
    scores["normsim_d"] = np.arange(len(scores["vas"])) % 90  # type: ignore[arg-type]
    folder = tmp_path_factory.mktemp("pools")
    whole = Job(POOL._replace(scores=scores), folder / "whole")
    available = {uid for uid, is_there in zip(POOL.uids, AVAILABLE, strict=True) if is_there}
    less = Job(
        POOL._replace(
            metadata=take(POOL.metadata, np.flatnonzero(AVAILABLE).tolist()),
            scores=take(scores, rows_of(scores, available)),
        ),
        folder / "less",
    )
    np.save(folder / "available.npy", sorted_uids([*available, *hex_uids(50, "others")]))
    return whole.write(3, 4), less.write(2, 5), folder / "available.npy"


@pytest.fixture(scope="module")
def job_with_status(jobs: tuple[Job, Job, Path], tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Write the pool with the column `status` of img2dataset."""
    status = ["success" if is_there else FAILED[row % 3] for row, is_there in enumerate(AVAILABLE)]
    pool = jobs[0].pool
    metadata = {**pool.metadata, "status": status}
    return Job(pool._replace(metadata=metadata), tmp_path_factory.mktemp("status")).write(4, 9)


def log_lines(text: str) -> list[str]:
    """Return the lines of a log, without the paths and row counts of the files."""
    lines = re.sub(r"an image and |\(the pool lists .*", "", text).splitlines()
    return [line for line in lines if not re.match("leaving out .* of|the pool lists|column", line)]


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
        for name in sorted(set(METHODS) - IN_MEMORY_ONLY)
    ],
)
def test_outputs_equal_those_of_the_available_rows(
    jobs: tuple[Job, Job, Path], job_with_status: Job, tmp_path: Path, method: str
) -> None:
    """Subset, scores and model of every method and sampling are equal, in memory and in files."""
    whole, available, path = jobs
    for index, flags in enumerate(sampled(method)):
        expected = outputs(available, tmp_path / f"less_{index}", *flags)
        flags_with_list = (*flags, "--available", path)
        variants = [(whole, flags_with_list), (job_with_status, flags)]
        with small_slices():
            for variant, (job, words) in enumerate(variants):
                in_memory = outputs(job, tmp_path / f"memory_{variant}_{index}", *words)
                work = (*words, "--work_dir", tmp_path / f"work_{variant}")
                in_files = outputs(job, tmp_path / f"files_{variant}_{index}", *work)
                assert in_memory[0] == in_files[0] == expected[0]
                assert log_lines(in_memory[1]) == log_lines(in_files[1]) == log_lines(expected[1])
                assert f"leaving out {NUM_MISSING:,} of {EXAMPLES:,} rows" in in_memory[1]
                assert f"leaving out {NUM_MISSING:,} of {EXAMPLES:,} rows" in in_files[1]


FLYT_POOL = make_pool()


@pytest.mark.parametrize("kind", ["list", "status", "both"])
@pytest.mark.parametrize("workers", [1, 2])
def test_flyt_on_embeddings(tmp_path: Path, kind: str, workers: int) -> None:
    """Missing rows and their embeddings, which are NaN, have no effect."""
    pool, arrays = FLYT_POOL, made_embeddings(len(FLYT_POOL.uids))
    available = np.arange(len(pool.uids)) % 4 > 0
    kept = np.flatnonzero(available).tolist()
    metadata = dict(pool.metadata)
    if kind != "list":
        failed = "failed_to_download"
        metadata["status"] = np.where(available, "success", failed).tolist()
    whole = Job(pool._replace(metadata=metadata), tmp_path / "whole").write(2, 3)
    available_job = Job(pool._replace(metadata=take(pool.metadata, kept)), tmp_path / "less").write(
        3, 1
    )
    uids = [pool.uids[row] for row in kept]
    write_npz(available_job.metadata, uids, {name: array[kept] for name, array in arrays.items()})
    missing_as_nan = {
        name: np.where(available[:, None], array, np.nan) for name, array in arrays.items()
    }
    write_npz(
        whole.metadata, pool.uids, {n: a.astype(np.float32) for n, a in missing_as_nan.items()}
    )
    save_glu_head(made_head(8, 12), tmp_path / "head.safetensors")
    np.save(tmp_path / "a.npy", sorted_uids(uids))
    list_flags = () if kind == "status" else ("--available", tmp_path / "a.npy")
    subsets = []
    for job, more in ((available_job, ()), (whole, list_flags)):
        model = ("--name", "e_flyt", "--scoring_model", tmp_path / "head.safetensors")
        flags = job.flags(*model, *SCS[4:], *more, "--num_workers", workers, table=False)
        ended = in_process(*flags)
        assert (ended.code, ended.stderr) == (0, "")
        subsets.append(job.save_path.read_bytes())
    assert subsets[0] == subsets[1]


def test_a_finished_run(tmp_path: Path) -> None:
    """A list that lacks images of the run's subset comes from another download, and is refused."""
    job = Job(make_pool(), tmp_path).write(2, 1)
    run = run_dir(tmp_path / "run")
    np.save(tmp_path / "all.npy", sorted_uids(job.pool.uids))
    np.save(tmp_path / "half.npy", sorted_uids(job.pool.uids[:60]))
    flags = job.flags("--name", "self_filtering", "--run_dir", run, table=False)
    assert in_process(*flags, "--available", str(tmp_path / "all.npy")).code == 0
    assert job.save_path.read_bytes() == (run / "subset.npy").read_bytes()
    ended = in_process(*flags, "--available", str(tmp_path / "half.npy"))
    assert_refused(ended, "uids that are not in the pool")


# -------------------------------------------------------------------------- fractions


def test_fractions_name_the_examples_that_they_refer_to(
    jobs: tuple[Job, Job, Path], tmp_path: Path
) -> None:
    whole, _, path = jobs
    flags = (*TOP, *GAPS, "--available", path)
    _, output = outputs(whole, tmp_path / "a", *flags)
    num_scored = int(
        re.search(r"([\d,]+) examples that have an image and a", output)[1].replace(",", "")
    )
    assert f"--fraction: top 30% of the {num_scored:,} examples" in output
    assert f"(the pool lists {EXAMPLES:,})" in output
    assert len(np.load(tmp_path / "a" / "subset.npy")) == int(0.3 * num_scored)
    _, output = outputs(whole, tmp_path / "b", *flags, "--fraction_of", "pool")
    assert (
        f"top 30% of the {EXAMPLES:,} examples that the pool lists, of which {num_scored:,}"
        in output
    )
    assert len(np.load(tmp_path / "b" / "subset.npy")) == int(0.3 * EXAMPLES)
    _, output = outputs(whole, tmp_path / "c", *TWO_STAGE, *GAPS, "--fraction_of", "pool")
    assert f"--first_fraction: top 30% of the {EXAMPLES:,}" in output
    assert f"--fraction: top 20% of the {EXAMPLES:,}" in output
    assert len(np.load(tmp_path / "c" / "subset.npy")) == int(0.2 * EXAMPLES)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ((*TOP, "--fraction", 0.9, "--fraction_of", "pool"), "leave out --fraction_of pool"),
        ((*TWO_STAGE, "--first_fraction", 0.9, "--fraction_of", "pool"), "lower --first_fraction"),
        ((*TWO_STAGE, "--fraction", 0.4), "or raise --first_fraction"),
        ((*TWO_STAGE, "--first_fraction", 0), "--first_fraction is 0"),
        ((*TOP, "--fraction", 1.5), "--fraction is 1.5"),
        ((*SCS, "--fraction_of", "pool"), "--fraction_of has no meaning"),
    ],
)
@pytest.mark.parametrize("work_dir", [False, True])
def test_fractions_of_too_many_examples_are_refused(
    jobs: tuple[Job, Job, Path],
    tmp_path: Path,
    flags: tuple[object, ...],
    named: str,
    work_dir: bool,
) -> None:
    whole, _, path = jobs
    more = ("--work_dir", tmp_path / "work") if work_dir else ()
    with small_slices():
        ended = in_process(*whole.flags(*flags, *GAPS, "--available", path, *more))
    assert_refused(ended, named)
    assert not whole.save_path.exists()


# --------------------------------------------------------------------------- refusals


def lists() -> Iterator[tuple[str, np.ndarray | bytes | None, str]]:
    uids = sorted_uids(POOL.uids)
    yield "another pool", sorted_uids(hex_uids(40, "others")), "has no example to select from"
    yield "a subset", np.repeat(uids, 2), "more than once"
    yield "unsorted", uids[::-1], "is not sorted"
    yield "empty", uids[:0], "names no image"
    yield "numbers", np.arange(9), "holds int64 [9]"
    yield "two dimensions", uids.reshape(2, -1), "in one dimension"
    yield "text", b"no array", "cannot be read as .npy"
    yield "cut short", uids[:0].tobytes() + b"\x93NUMPY", "cannot be read as .npy"
    yield "nothing", None, "is no file"


@pytest.mark.parametrize(("kind", "content", "named"), list(lists()))
@pytest.mark.parametrize("work_dir", [False, True])
def test_files_that_are_no_list_are_refused(
    jobs: tuple[Job, Job, Path],
    tmp_path: Path,
    kind: str,
    content: np.ndarray | bytes | None,
    named: str,
    work_dir: bool,
) -> None:
    path = tmp_path / "list.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    more = ("--work_dir", tmp_path / "work") if work_dir else ()
    with small_slices():
        ended = in_process(*jobs[0].flags(*SCS, *GAPS, "--available", path, *more))
    assert_refused(ended, named, str(path))
    assert not jobs[0].save_path.exists()


def test_two_flags_for_the_list_are_refused(jobs: tuple[Job, Job, Path], tmp_path: Path) -> None:
    flags = ("--available", jobs[2], "--shards_dir", tmp_path)
    assert_refused(in_process(*jobs[0].flags(*SCS, *flags)), "leave one out")


def test_the_list_is_not_overwritten(jobs: tuple[Job, Job, Path], tmp_path: Path) -> None:
    list_path = tmp_path / "mine.npy"
    list_path.write_bytes(jobs[2].read_bytes())
    flags = jobs[0].flags(*SCS, *GAPS, "--available", list_path)
    assert_refused(in_process(*flags, "--save_path", str(list_path)), "--available")
    assert list_path.read_bytes() == jobs[2].read_bytes()


def test_a_list_that_changes(jobs: tuple[Job, Job, Path], tmp_path: Path) -> None:
    """A work folder belongs to one list; another list under the same name is refused."""
    whole, _, path = jobs
    list_path = tmp_path / "mine.npy"
    list_path.write_bytes(path.read_bytes())
    flags = (*SCS, *GAPS, "--available", list_path, "--work_dir", tmp_path / "work")
    with small_slices() as engine:
        expected = outputs(whole, tmp_path / "one", *flags)[0]
        assert engine.names
        engine.names.clear()
        assert outputs(whole, tmp_path / "two", *flags)[0] == expected
        assert not engine.names  # the pool was sorted already
        np.save(list_path, np.load(path)[:-3])
        ended = in_process(*whole.flags(*flags))
        assert_refused(ended, "holds a job on other files")
        ended = in_process(*whole.flags(*flags[:-4], *flags[-2:]))
        assert_refused(ended, "holds a job on other files")


@pytest.mark.parametrize("status", [[1, 2, 3], [True, False, True], [b"success"] * 3, [None] * 3])
def test_a_status_of_another_type_is_refused(tmp_path: Path, status: list[object]) -> None:
    pool = make_pool(3)
    job = Job(pool._replace(metadata={**pool.metadata, "status": status}), tmp_path)
    job.write()
    for more in ((), ("--work_dir", tmp_path / "work")):
        with small_slices():
            ended = in_process(*job.flags(*SCS, *more))
        assert_refused(ended, "has a column 'status' of type", "part-00000.parquet")


def test_a_status_that_is_never_success_is_refused(tmp_path: Path) -> None:
    pool = make_pool(6)
    for index, value in enumerate(("failed", "", "Success", "ok")):
        metadata = {**pool.metadata, "status": [value] * 6}
        job = Job(pool._replace(metadata=metadata), tmp_path / str(index))
        job.folder.mkdir()
        ended = in_process(*job.write().flags(*SCS))
        assert_refused(ended, "all of its 6 rows have a 'status' other than 'success'")


# ------------------------------------------------------------------------- scores by key


@pytest.fixture
def keyed(tmp_path: Path) -> Job:
    """Write two tars of 60 examples, a quarter missing, and scores with img2dataset's key only."""
    pool = make_pool()
    job = Job(pool, tmp_path).write(2, 1)
    for shard in range(2):
        uids = pool.uids[60 * shard : 60 * (shard + 1)]
        available = [row % 4 > 0 for row in range(60)]
        write_shard(tmp_path / "shards", shard, uids, available)
    keys = [f"{row // 60:05d}{row % 60:04d}" for row in range(120)]
    scores = {"key": keys} | {name: v for name, v in pool.scores.items() if name != "uid"}
    for file in job.scores.iterdir():
        file.unlink()
    rng = np.random.default_rng(3)
    for index, rows in enumerate(np.array_split(rng.permutation(120), 3)):
        write_parquet(job.scores / f"{index}.parquet", take(scores, rows.tolist()))
    return job


def test_scores_by_key(keyed: Job) -> None:
    shards = keyed.folder / "shards"
    assert "120 keys of 2 tables" in keyed.select(*SCS, "--shards_dir", shards)
    by_key = keyed.save_path.read_bytes()
    Job(keyed.pool, keyed.folder / "plain").folder.mkdir()
    plain = Job(keyed.pool, keyed.folder / "plain").write()
    plain.select(*SCS, "--shards_dir", shards)
    assert plain.save_path.read_bytes() == by_key


def change_table(path: Path, **columns: object) -> None:
    table = pq.read_table(path)
    for name, values in columns.items():
        table = table.drop([name])
        if values is not None:
            table = table.append_column(name, pa.array(values))
    pq.write_table(table, path)


def test_keys_that_do_not_join_are_refused(keyed: Job) -> None:
    shards = keyed.folder / "shards"
    flags = keyed.flags(*SCS, "--shards_dir", shards)
    one, two = (shards / f"0000000{shard}.parquet" for shard in range(2))
    content = two.read_bytes()
    cases: list[tuple[dict[str, object], tuple[str, ...]]] = [
        ({"key": pq.read_table(one)["key"].to_pylist()}, ("twice", str(one), str(two))),
        ({"key": None}, ("has no column 'key'", str(two))),
        ({"key": [f"other{row:03d}" for row in range(60)]}, ("has key '00001", "no table")),
        ({"key": ["k" * 20] * 60}, ("has key '00001", "no table")),
        ({"key": list(range(60))}, ("has column 'key' of type int64", str(two))),
        ({"key": [None] * 59 + ["x"]}, ("has key '00001", "no table")),
    ]
    for columns, named in cases:
        change_table(two, **columns)
        assert_refused(in_process(*flags), *named)
        two.write_bytes(content)
    work = ("--work_dir", str(keyed.folder / "work"))
    assert_refused(in_process(*flags, *work), "which --work_dir does not join")
    alone = keyed.flags(*SCS)
    assert_refused(in_process(*alone), "has no column 'uid'", "select with --shards_dir")
    two.unlink()
    assert_refused(in_process(*flags), "has key '00001", "no table")
    one.unlink()
    assert_refused(in_process(*flags), "has no table with keys and uids")
    assert not keyed.save_path.exists()


def test_scores_by_keys_of_another_type(keyed: Job) -> None:
    shards = keyed.folder / "shards"
    expected = None
    for dtype in (pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())):
        for path in (*keyed.scores.iterdir(), *shards.glob("*.parquet")):
            table = pq.read_table(path)
            column = table.column_names.index("key")
            keys = table["key"].cast(pa.string()).cast(dtype)
            pq.write_table(table.set_column(column, "key", keys), path)
        keyed.select(*SCS, "--shards_dir", shards)
        expected = expected or keyed.save_path.read_bytes()
        assert keyed.save_path.read_bytes() == expected
