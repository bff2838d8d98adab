"""Selection from the images at hand: the bytes of a selection from a pool of these alone."""

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
    outputs,
    small_slices,
    spoilt,
)
from tests.baselines_plugin.samplings import IN_MEMORY_ONLY, sampled
from tests.conftest import hex_uids, make_pool, sorted_uids, take, write_parquet
from tests.scorers.base.made import made_embeddings, made_head, write_npz
from tests.tars.made_downloads import FAILED, write_shard

QUICK = {"m_flyt", "neg_clip_loss_norm_sim"}
THERE = np.random.default_rng(7).random(EXAMPLES) > 0.25
GONE = int(np.count_nonzero(~THERE))


def rows_of(columns: dict[str, object], kept: set[str]) -> list[int]:
    return [row for row, uid in enumerate(columns["uid"]) if uid in kept]  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, Job, Path]:
    """A pool, the same without the rows that are gone, and a list of the others."""
    scores = spoilt()
    scores["normsim_d"] = np.arange(len(scores["vas"])) % 90  # type: ignore[arg-type]
    folder = tmp_path_factory.mktemp("pools")
    whole = Job(POOL._replace(scores=scores), folder / "whole")
    there = {uid for uid, ok in zip(POOL.uids, THERE, strict=True) if ok}
    less = Job(
        POOL._replace(
            metadata=take(POOL.metadata, np.flatnonzero(THERE).tolist()),
            scores=take(scores, rows_of(scores, there)),
        ),
        folder / "less",
    )
    np.save(folder / "available.npy", sorted_uids([*there, *hex_uids(50, "others")]))
    return whole.write(3, 4), less.write(2, 5), folder / "available.npy"


@pytest.fixture(scope="module")
def of_status(jobs: tuple[Job, Job, Path], tmp_path_factory: pytest.TempPathFactory) -> Job:
    """The whole pool in files of img2dataset."""
    status = ["success" if ok else FAILED[row % 3] for row, ok in enumerate(THERE)]
    made = jobs[0].pool
    metadata = {**made.metadata, "status": status}
    return Job(made._replace(metadata=metadata), tmp_path_factory.mktemp("status")).write(4, 9)


def said_of(text: str) -> list[str]:
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
def test_bytes(jobs: tuple[Job, Job, Path], of_status: Job, tmp_path: Path, method: str) -> None:
    """Of every method with every sampling, in memory and in files: subset, scores, model."""
    whole, less, path = jobs
    for number, flags in enumerate(sampled(method)):
        wanted = outputs(less, tmp_path / f"less_{number}", *flags)
        known = (*flags, "--available", path)
        ways = [(whole, known), (of_status, flags)]
        with small_slices():
            for place, (job, words) in enumerate(ways):
                found = outputs(job, tmp_path / f"memory_{place}_{number}", *words)
                work = (*words, "--work_dir", tmp_path / f"work_{place}")
                of_files = outputs(job, tmp_path / f"files_{place}_{number}", *work)
                assert found[0] == of_files[0] == wanted[0]
                assert said_of(found[1]) == said_of(of_files[1]) == said_of(wanted[1])
                assert f"leaving out {GONE:,} of {EXAMPLES:,} rows" in found[1]
                assert f"leaving out {GONE:,} of {EXAMPLES:,} rows" in of_files[1]


FLYT_POOL = make_pool()


@pytest.mark.parametrize("kind", ["list", "status", "both"])
@pytest.mark.parametrize("workers", [1, 2])
def test_flyt_on_embeddings(tmp_path: Path, kind: str, workers: int) -> None:
    """Rows that are gone have no say, nor have their embeddings, which cannot be used."""
    pool, arrays = FLYT_POOL, made_embeddings(len(FLYT_POOL.uids))
    there = np.arange(len(pool.uids)) % 4 > 0
    kept = np.flatnonzero(there).tolist()
    metadata = dict(pool.metadata)
    if kind != "list":
        wrong = "failed_to_download"
        metadata["status"] = np.where(there, "success", wrong).tolist()
    whole = Job(pool._replace(metadata=metadata), tmp_path / "whole").write(2, 3)
    less = Job(pool._replace(metadata=take(pool.metadata, kept)), tmp_path / "less").write(3, 1)
    uids = [pool.uids[row] for row in kept]
    write_npz(less.metadata, uids, {name: array[kept] for name, array in arrays.items()})
    spoilt = {name: np.where(there[:, None], array, np.nan) for name, array in arrays.items()}
    write_npz(whole.metadata, pool.uids, {n: a.astype(np.float32) for n, a in spoilt.items()})
    save_glu_head(made_head(8, 12), tmp_path / "head.safetensors")
    np.save(tmp_path / "a.npy", sorted_uids(uids))
    known = () if kind == "status" else ("--available", tmp_path / "a.npy")
    subsets = []
    for job, more in ((less, ()), (whole, known)):
        model = ("--name", "e_flyt", "--scoring_model", tmp_path / "head.safetensors")
        flags = job.flags(*model, *SCS[4:], *more, "--num_workers", workers, table=False)
        ended = in_process(*flags)
        assert (ended.code, ended.stderr) == (0, "")
        subsets.append(job.save_path.read_bytes())
    assert subsets[0] == subsets[1]


def test_a_finished_run(tmp_path: Path) -> None:
    """Its mix draws images that there were: a list without them is of another download."""
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


def test_fractions_say_of_what_they_are(jobs: tuple[Job, Job, Path], tmp_path: Path) -> None:
    whole, _, path = jobs
    flags = (*TOP, *GAPS, "--available", path)
    _, said = outputs(whole, tmp_path / "a", *flags)
    number = int(re.search(r"([\d,]+) examples that have an image and a", said)[1].replace(",", ""))
    assert f"--fraction: top 30% of the {number:,} examples" in said
    assert f"(the pool lists {EXAMPLES:,})" in said
    assert len(np.load(tmp_path / "a" / "subset.npy")) == int(0.3 * number)
    _, said = outputs(whole, tmp_path / "b", *flags, "--fraction_of", "pool")
    assert f"top 30% of the {EXAMPLES:,} examples that the pool lists, of which {number:,}" in said
    assert len(np.load(tmp_path / "b" / "subset.npy")) == int(0.3 * EXAMPLES)
    _, said = outputs(whole, tmp_path / "c", *TWO_STAGE, *GAPS, "--fraction_of", "pool")
    assert f"--first_fraction: top 30% of the {EXAMPLES:,}" in said
    assert f"--fraction: top 20% of the {EXAMPLES:,}" in said
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
def test_fractions_of_more_than_there_is(
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
def test_no_list(
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


def test_both_flags(jobs: tuple[Job, Job, Path], tmp_path: Path) -> None:
    flags = ("--available", jobs[2], "--shards_dir", tmp_path)
    assert_refused(in_process(*jobs[0].flags(*SCS, *flags)), "leave one out")


def test_the_list_is_no_output(jobs: tuple[Job, Job, Path], tmp_path: Path) -> None:
    mine = tmp_path / "mine.npy"
    mine.write_bytes(jobs[2].read_bytes())
    flags = jobs[0].flags(*SCS, *GAPS, "--available", mine)
    assert_refused(in_process(*flags, "--save_path", str(mine)), "--available")
    assert mine.read_bytes() == jobs[2].read_bytes()


def test_a_list_that_changes(jobs: tuple[Job, Job, Path], tmp_path: Path) -> None:
    """A work folder is of one list; another one under the same name is refused."""
    whole, _, path = jobs
    mine = tmp_path / "mine.npy"
    mine.write_bytes(path.read_bytes())
    flags = (*SCS, *GAPS, "--available", mine, "--work_dir", tmp_path / "work")
    with small_slices() as here:
        wanted = outputs(whole, tmp_path / "one", *flags)[0]
        assert here.names
        here.names.clear()
        assert outputs(whole, tmp_path / "two", *flags)[0] == wanted
        assert not here.names  # all was there
        np.save(mine, np.load(path)[:-3])
        ended = in_process(*whole.flags(*flags))
        assert_refused(ended, "holds a job on other files")
        ended = in_process(*whole.flags(*flags[:-4], *flags[-2:]))
        assert_refused(ended, "holds a job on other files")


@pytest.mark.parametrize("status", [[1, 2, 3], [True, False, True], [b"success"] * 3, [None] * 3])
def test_a_status_of_something_else(tmp_path: Path, status: list[object]) -> None:
    pool = make_pool(3)
    job = Job(pool._replace(metadata={**pool.metadata, "status": status}), tmp_path)
    job.write()
    for more in ((), ("--work_dir", tmp_path / "work")):
        with small_slices():
            ended = in_process(*job.flags(*SCS, *more))
        assert_refused(ended, "has a column 'status' of type", "part-00000.parquet")


def test_a_status_that_is_never_success(tmp_path: Path) -> None:
    pool = make_pool(6)
    for number, value in enumerate(("failed", "", "Success", "ok")):
        metadata = {**pool.metadata, "status": [value] * 6}
        job = Job(pool._replace(metadata=metadata), tmp_path / str(number))
        job.folder.mkdir()
        ended = in_process(*job.write().flags(*SCS))
        assert_refused(ended, "all of its 6 rows have a 'status' other than 'success'")


# ------------------------------------------------------------------------- keys for uids


@pytest.fixture
def keyed(tmp_path: Path) -> Job:
    """Two tars of 60 examples, a quarter gone; scores by img2dataset's key alone."""
    pool = make_pool()
    job = Job(pool, tmp_path).write(2, 1)
    for number in range(2):
        uids = pool.uids[60 * number : 60 * (number + 1)]
        there = [row % 4 > 0 for row in range(60)]
        write_shard(tmp_path / "shards", number, uids, there)
    keys = [f"{row // 60:05d}{row % 60:04d}" for row in range(120)]
    scores = {"key": keys} | {name: v for name, v in pool.scores.items() if name != "uid"}
    for file in job.scores.iterdir():
        file.unlink()
    rng = np.random.default_rng(3)
    for number, rows in enumerate(np.array_split(rng.permutation(120), 3)):
        write_parquet(job.scores / f"{number}.parquet", take(scores, rows.tolist()))
    return job


def test_scores_by_key(keyed: Job) -> None:
    shards = keyed.folder / "shards"
    assert "120 keys of 2 tables" in keyed.select(*SCS, "--shards_dir", shards)
    found = keyed.save_path.read_bytes()
    Job(keyed.pool, keyed.folder / "plain").folder.mkdir()
    plain = Job(keyed.pool, keyed.folder / "plain").write()
    plain.select(*SCS, "--shards_dir", shards)
    assert plain.save_path.read_bytes() == found


def change_table(path: Path, **columns: object) -> None:
    table = pq.read_table(path)
    for name, values in columns.items():
        table = table.drop([name])
        if values is not None:
            table = table.append_column(name, pa.array(values))
    pq.write_table(table, path)


def test_keys_that_do_not_join(keyed: Job) -> None:
    shards = keyed.folder / "shards"
    flags = keyed.flags(*SCS, "--shards_dir", shards)
    one, two = (shards / f"0000000{number}.parquet" for number in range(2))
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
    wanted = None
    for kind in (pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())):
        for path in (*keyed.scores.iterdir(), *shards.glob("*.parquet")):
            table = pq.read_table(path)
            place = table.column_names.index("key")
            keys = table["key"].cast(pa.string()).cast(kind)
            pq.write_table(table.set_column(place, "key", keys), path)
        keyed.select(*SCS, "--shards_dir", shards)
        wanted = wanted or keyed.save_path.read_bytes()
        assert keyed.save_path.read_bytes() == wanted
