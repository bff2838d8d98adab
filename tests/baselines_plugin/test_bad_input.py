"""Bad input: exit code 2, one sentence on stderr, and nothing written or changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.baselines_plugin.job import Job, as_command, assert_refused, in_process
from tests.conftest import hex_uids, make_pool, write_parquet
from tests.files.torch_zip import zip_file

POOL = make_pool()
ROWS = len(POOL.uids)
DRAWS = ("--num_samples", 200)
ALPHA = ("--repetition_penalty", 0.4)
PAPER = ("--name", "m_flyt", "--scoring_model", "paper")
ON_FLYT = ("--column", "FLYT")
M_FLYT = (*PAPER, *DRAWS, *ALPHA)
SCS = ("--name", "scs", *ON_FLYT, *DRAWS, *ALPHA)
TOP = ("--name", "top_fraction", *ON_FLYT)
HCS = ("--name", "hcs", *ON_FLYT, *DRAWS)

Flags = tuple[object, ...]
Spoil = Callable[[Job], None]
FilesIn = Callable[[], dict[str, bytes]]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(POOL, tmp_path).write(parts=2)


# ------------------------------------------------------------------------------ bad files


def change(path: Path, column: str, row: int, value: Any) -> None:
    """Change one value of one column of a parquet file."""
    table = pq.read_table(path)
    values = table[column].to_pylist()
    values[row] = value
    index = table.column_names.index(column)
    write_parquet(
        path, table.set_column(index, column, pa.array(values, table[column].type)).to_pydict()
    )


def second(folder: Path) -> Path:
    return folder / "part-00001.parquet"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def remove_all(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def missing(folder: Path) -> None:
    remove_all(folder)
    folder.rmdir()


def other_npz(job: Job) -> None:
    np.savez(job.metadata / "part-00001.npz", b32_img=np.zeros((ROWS // 2 - 1, 4)))


def damaged_npz(job: Job) -> None:
    (job.metadata / "part-00001.npz").write_bytes(b"PK\x03\x04 and no more")


def without_uid(path: Path) -> None:
    write_parquet(path, {"id": POOL.uids, "FLYT": np.zeros(ROWS)})


def empty_pool(job: Job) -> None:
    remove_all(job.metadata)
    write_parquet(job.metadata / "a.parquet", {"uid": pa.array([], pa.string())})


def part_of_the_pool(job: Job) -> None:
    second(job.scores).unlink()


def another_pool(job: Job) -> None:
    remove_all(job.scores)
    write_parquet(job.scores / "a.parquet", {"uid": hex_uids(9, "x"), "FLYT": np.zeros(9)})


def scores_twice(job: Job) -> None:
    second(job.scores).with_name("again.parquet").write_bytes(second(job.scores).read_bytes())


def all_nan(job: Job) -> None:
    remove_all(job.scores)
    write_parquet(job.scores / "a.parquet", {"uid": POOL.uids, "FLYT": np.full(ROWS, np.nan)})


def constant(job: Job) -> None:
    remove_all(job.scores)
    scores = {**POOL.scores, "FLYT": np.full(ROWS, np.float32(0.1))}
    write_parquet(job.scores / "a.parquet", scores)


def score(value: float | None) -> Spoil:
    return lambda job: change(second(job.scores), "FLYT", 7, value)


def uid(value: str | None) -> Spoil:
    return lambda job: change(second(job.metadata), "uid", 7, value)


FILES: dict[str, tuple[Spoil, Flags, list[str]]] = {
    "no metadata folder": (lambda job: missing(job.metadata), SCS, ["--metadata_dir", "metadata"]),
    "no metadata files": (lambda job: remove_all(job.metadata), SCS, ["no .parquet file"]),
    "no scores folder": (lambda job: missing(job.scores), SCS, ["--scores_dir", "scores"]),
    "no scores files": (lambda job: remove_all(job.scores), SCS, ["--scores_dir", "no .parquet"]),
    "metadata without uid": (
        lambda job: without_uid(second(job.metadata)), SCS, ["part-00001.parquet", "'uid'"]
    ),
    "scores without uid": (
        lambda job: without_uid(second(job.scores)), SCS, ["part-00001.parquet", "'uid'"]
    ),
    "empty pool": (empty_pool, SCS, ["no example"]),
    "uid twice": (uid(POOL.uids[3]), SCS, [POOL.uids[3], "00.parquet row 3", "01.parquet row 7"]),
    "uid of letters": (uid("g" * 32), SCS, ["part-00001.parquet row 7", "g" * 32]),
    "uid too short": (uid("0123"), SCS, ["part-00001.parquet row 7", "0123"]),
    "uid null": (uid(None), SCS, ["part-00001.parquet row 7"]),
    "NaN score": (score(float("nan")), SCS, ["'FLYT' has 1 scores", "part-00001.parquet row 7"]),
    "infinite score": (score(float("inf")), SCS, ["'FLYT' has 1 ", "01.parquet row 7"]),
    "infinite score of m_flyt": (score(float("-inf")), M_FLYT, ["'FLYT'", "01.parquet row 7"]),
    "null score": (score(None), SCS, ["--drop_nonfinite", "part-00001.parquet row 7"]),
    "no usable score": (all_nan, (*SCS, "--drop_nonfinite"), ["no example"]),
    "part of the pool": (part_of_the_pool, SCS, ["60 of the pool's 120", "--allow_partial_scores"]),
    "another pool": (another_pool, (*SCS, "--allow_partial_scores"), ["120 of the pool's 120"]),
    "scores twice": (scores_twice, SCS, ["again.parquet row 0", "part-00001.parquet row 0"]),
    "npz of other length": (other_npz, SCS, ["part-00001.npz has 59", "part-00001.parquet has 60"]),
    "damaged npz": (damaged_npz, SCS, ["part-00001.npz"]),
    "truncated metadata": (lambda job: cut(second(job.metadata)), SCS, ["part-00001.parquet"]),
    "truncated scores": (lambda job: cut(second(job.scores)), SCS, ["part-00001.parquet"]),
    "constant column": (constant, M_FLYT, ["'FLYT'", "standard deviation"]),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "flags", "named"), FILES.values(), ids=FILES.keys())
@pytest.mark.parametrize("old", [None, b"an older subset"])
def test_bad_files_are_refused(
    job: Job, files_in: FilesIn, spoil: Spoil, flags: Flags, named: list[str], old: bytes | None
) -> None:
    spoil(job)
    if old is not None:
        job.save_path.write_bytes(old)
    before = files_in()
    assert_refused(in_process(*job.flags(*flags)), *named)
    assert files_in() == before


@pytest.mark.parametrize("case", ["NaN score", "npz of other length", "truncated metadata"])
@pytest.mark.parametrize("workers", [1, 2])
def test_bad_files_are_refused_as_a_command(
    job: Job, files_in: FilesIn, case: str, workers: int
) -> None:
    spoil, flags, named = FILES[case]
    spoil(job)
    job.save_path.write_bytes(b"an older subset")
    before = files_in()
    assert_refused(as_command(*job.flags(*flags, "--num_workers", workers)), *named)
    assert files_in() == before


# ------------------------------------------------------------------------------ bad flags


IN_SUM = ("--name", "in_weighted_sum", *DRAWS, *ALPHA)
STANDARDIZED = ("--name", "standardized_sum", *DRAWS, *ALPHA)
ONE = ("--name", "scs", *ON_FLYT)
FLAGS: dict[str, tuple[Flags, str]] = {
    **{f"fraction {f}": ((*TOP, "--fraction", f), f"fraction is {f}") for f in (0.0, 1.5, "nan")},
    "fraction below 0": ((*TOP, "--fraction=-0.1"), "fraction is -0.1"),
    "fraction of nothing": ((*TOP, "--fraction", 0.001), "keeps none"),
    "no fraction": (TOP, "--fraction"),
    "alpha below 0": ((*ONE, *DRAWS, "--repetition_penalty=-0.1"), "is -0.1, wanted 0 or more"),
    "alpha nan": ((*ONE, *DRAWS, "--repetition_penalty", "nan"), "wanted 0 or more"),
    "alpha infinite": ((*ONE, *DRAWS, "--repetition_penalty", "inf"), "wanted 0 or more"),
    "no alpha": ((*ONE, *DRAWS), "--repetition_penalty"),
    "no draws": ((*ONE, *ALPHA), "--num_samples"),
    "0 draws": ((*ONE, *ALPHA, "--num_samples", 0), "num_samples is 0"),
    "draws below 0": ((*ONE, *ALPHA, "--num_samples=-5"), "num_samples is -5"),
    "too many draws": ((*ONE, *ALPHA, "--num_samples", 2**31), "num_samples is 2,147,483,648"),
    "xlarge scale": ((*ONE, "--scale", "xlarge"), "num_samples is 12,800,000,000"),
    "G of 0": ((*SCS, "--sampling_batch_size", 0), "sampling_batch_size is 0"),
    "G above the pool": ((*SCS, "--sampling_batch_size", 121), "sampling_batch_size is 121"),
    "no beta": (HCS, "--frequency_limit"),
    "beta too small": ((*HCS, "--frequency_limit", 1), "frequency_limit 1 lets 120 examples"),
    "beta of 0": ((*HCS, "--frequency_limit", 0), "frequency_limit is 0, wanted 1 or more"),
    "beta below 0": ((*HCS, "--frequency_limit=-3"), "frequency_limit is -3, wanted 1 or more"),
    "0 workers": ((*SCS, "--num_workers", 0), "--num_workers is 0"),
    "no score": (("--name", "scs", *DRAWS, *ALPHA), "--column"),
    "unknown score": (("--name", "scs", "--column", "CLIP", *DRAWS, *ALPHA), "no column 'CLIP'"),
    "score of text": (("--name", "scs", "--column", "text", *DRAWS, *ALPHA), "of type string"),
    "no model": (("--name", "m_flyt", *DRAWS, *ALPHA), "--scoring_model"),
    "missing model": (
        ("--name", "m_flyt", "--scoring_model", "no.pt", *DRAWS, *ALPHA), "no.pt is not a file"
    ),
    "unknown column": ((*STANDARDIZED, "--score_columns", "FLYT", "x"), "no column 'x'"),
    "ratio of 1": ((*IN_SUM, "--weight_ratio", 1), "--weight_ratio is 1.0"),
    "ratio of 0": ((*IN_SUM, "--weight_ratio", 0), "--weight_ratio is 0.0"),
    "accuracy without value": ((*IN_SUM, "--imagenet_accuracies", "FLYT"), "COLUMN=VALUE"),
    "accuracy of text": ((*IN_SUM, "--imagenet_accuracies", "FLYT=x"), "COLUMN=VALUE"),
    "equal accuracies": (
        (*IN_SUM, "--imagenet_accuracies", "FLYT=0.3", "DFN-FT=0.3"), "--imagenet_accuracies"
    ),
    "accuracies that are no numbers": (
        (*IN_SUM, "--imagenet_accuracies", "FLYT=0.3", "DFN-FT=nan", "vit-b-32=0.4"),
        "--imagenet_accuracies",
    ),
    "other sampling": ((*SCS, "--sampling", "hcs"), "always samples by scs"),
}  # fmt: skip


@pytest.mark.parametrize(("flags", "message"), FLAGS.values(), ids=FLAGS.keys())
def test_bad_flags_are_refused(job: Job, files_in: FilesIn, flags: Flags, message: str) -> None:
    job.save_path.write_bytes(b"an older subset")
    before = files_in()
    assert_refused(in_process(*job.flags(*flags)), message)
    assert files_in() == before


@pytest.mark.parametrize("flag", ["--save_scores", "--save_scoring_model"])
def test_two_outputs_in_one_file_are_refused(job: Job, files_in: FilesIn, flag: str) -> None:
    before = files_in()
    other_name = job.save_path.parent / "." / job.save_path.name
    assert_refused(in_process(*job.flags(*STANDARDIZED, *DRAWS, flag, other_name)), flag)
    assert files_in() == before


NO_MEANING: list[tuple[Flags, str]] = [
    (SCS, "--frequency_limit 5"),
    (SCS, "--fraction 0.5"),
    (SCS, "--keep_ties"),
    (SCS, "--scoring_model paper"),
    (SCS, "--save_scoring_model m.safetensors"),
    (SCS, "--score_columns FLYT"),
    (SCS, "--allow_missing_scores"),
    (SCS, "--weight_ratio 2"),
    (M_FLYT, "--column FLYT"),
    (M_FLYT, "--score_columns FLYT"),
    (M_FLYT, "--imagenet_accuracies FLYT=0.3"),
    (STANDARDIZED, "--scoring_model paper"),
    (STANDARDIZED, "--weight_ratio 2"),
    (IN_SUM, "--score_columns FLYT"),
    ((*HCS, "--frequency_limit", 5), "--repetition_penalty 0.1"),
    ((*HCS, "--frequency_limit", 5), "--sampling_batch_size 3"),
    ((*TOP, "--fraction", 0.5), "--num_samples 5"),
    ((*TOP, "--fraction", 0.5), "--frequency_limit 5"),
    (("--name", "no_cap", *ON_FLYT, *DRAWS), "--repetition_penalty 0.1"),
    # values that are equal to False
    ((*HCS, "--frequency_limit", 5), "--repetition_penalty 0"),
    ((*TOP, "--fraction", 0.5), "--num_samples 0"),
]


@pytest.mark.parametrize(("flags", "extra"), NO_MEANING)
def test_flags_without_effect_are_refused(
    job: Job, files_in: FilesIn, flags: Flags, extra: str
) -> None:
    before = files_in()
    outcome = in_process(*job.flags(*flags, *extra.split()))
    assert_refused(outcome, f"{extra.split()[0]} has no meaning for --name {flags[1]}")
    assert files_in() == before


# ------------------------------------------------------------------------------ bad paths


@pytest.mark.parametrize("flag", ["--save_path", "--save_scores", "--save_scoring_model"])
@pytest.mark.parametrize(
    "output",
    [
        "folder",
        "file/below",
        "memory://bucket/out",
        pytest.param(
            "/proc/out",
            marks=pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc"),
        ),
    ],
)
def test_outputs_that_cannot_be_written_are_refused(
    job: Job, tmp_path: Path, files_in: FilesIn, flag: str, output: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"a file")
    before = files_in()
    path = output if "://" in output else str(tmp_path / output)
    assert_refused(in_process(*job.flags(*M_FLYT), flag, path), f"{flag} {path}")
    assert files_in() == before


LATE: dict[str, Flags] = {
    "no alpha": (*PAPER, *DRAWS),
    "no draws": (*PAPER, *ALPHA),
    "beta too small": (*PAPER, "--sampling", "hcs", *DRAWS, "--frequency_limit", 1),
    "fraction above 1": (*PAPER, "--sampling", "top_fraction", "--fraction", 2),
    "G above the pool": (*M_FLYT, "--sampling_batch_size", 121),
}


@pytest.mark.parametrize("flags", LATE.values(), ids=LATE.keys())
def test_nothing_is_saved_if_sampling_fails(
    job: Job, tmp_path: Path, files_in: FilesIn, flags: Flags
) -> None:
    before = files_in()
    outputs = (
        "--save_scores",
        tmp_path / "s.parquet",
        "--save_scoring_model",
        tmp_path / "m.safetensors",
    )
    assert_refused(in_process(*job.flags(*flags, *outputs)))
    assert files_in() == before


# ----------------------------------------------------------------------------- bad models


def evil(path: Path) -> None:
    mark = str(path.parent / "executed").encode()
    zip_file(
        path, b"cos\nsystem\n(X" + bytes([len(mark) + 6, 0, 0, 0]) + b"touch " + mark + b"tR", {}
    )


@pytest.mark.parametrize(
    "make", [evil, lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"PK\x03\x04")]
)
def test_bad_scoring_models_are_refused(
    job: Job, tmp_path: Path, files_in: FilesIn, make: Callable[[Path], object]
) -> None:
    model = tmp_path / "mflyt.pt"
    make(model)
    before = files_in()
    flags = ("--name", "m_flyt", "--scoring_model", model, *DRAWS, *ALPHA)
    assert_refused(in_process(*job.flags(*flags)), model)
    assert files_in() == before


def test_the_valid_job_runs(job: Job) -> None:
    """The job that the tests above make invalid runs with each kind of flags."""
    for flags in (SCS, M_FLYT, STANDARDIZED, IN_SUM, (*HCS, "--frequency_limit", 2)):
        job.select(*flags)
        assert len(np.load(job.save_path)) == 200
    job.select(*TOP, "--fraction", 0.5)
    assert len(np.load(job.save_path)) == 60
