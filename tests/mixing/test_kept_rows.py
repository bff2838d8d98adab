"""Examples that are left out have no effect: the outputs equal those of a pool without them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from datacomp_flyt.errors import InputError
from datacomp_flyt.mixing import (
    LinearMixingModel,
    load_mixing_model,
    mix,
    plain_sum,
    standardized_sum,
)
from datacomp_flyt.pool.row_order import Column, RowOrder
from tests.baselines_plugin.job import Job, in_process
from tests.conftest import PUBLISHED, make_pool, refusal, take, write_files

NAMES = ("a", "b", "c")
BLOCK = 1 << 16


def with_gaps(rows: int, gaps: dict[str, list[int]], seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    columns = []
    for index, name in enumerate(NAMES):
        values = rng.normal(index, 1 + index, rows).astype(np.float32 if index else np.float64)
        values[gaps.get(name, [])] = np.nan
        columns.append(values)
    return columns


GAPS: dict[str, dict[str, list[int]]] = {
    "the first column": {"a": [0, 7, 8]},
    "a later column": {"c": [0, 7, 8]},
    "the same examples in all": {name: [3, 4, 299] for name in NAMES},
    "other examples in each": {"a": [1], "b": [2, 3], "c": [4]},
    "fewer and fewer": {"a": [1, 2, 3], "b": [1, 2], "c": [1]},
    "more and more": {"a": [1], "b": [1, 2], "c": [1, 2, 3]},
    "nearly all": {"a": list(range(100)), "b": list(range(100, 298))},
}


@pytest.mark.parametrize("gaps", GAPS.values(), ids=GAPS.keys())
@pytest.mark.parametrize("workers", [1, 3])
def test_mixing_with_gaps_is_mixing_kept_rows(gaps: dict[str, list[int]], workers: int) -> None:
    columns = with_gaps(300, gaps)
    kept = ~np.isnan(columns).any(axis=0)
    model = LinearMixingModel(NAMES, (0.5, -2.0, 1.5), bias=0.25)
    scores, fitted = mix(model, columns, workers)
    expected, expected_model = mix(model, [column[kept] for column in columns])
    assert fitted == expected_model
    assert scores[kept].tobytes() == expected.tobytes()
    assert np.isnan(scores[~kept]).all()


@pytest.mark.parametrize("first_gap", [5, BLOCK - 1, BLOCK, 2 * BLOCK + 3])
def test_blocks_of_sums_count_kept_rows(first_gap: int) -> None:
    """Sums are pairwise within blocks, and each row that is left out shifts the later ones."""
    gaps = {"b": [first_gap], "c": list(range(first_gap + 1, 3 * BLOCK, 1001))}
    columns = with_gaps(3 * BLOCK, gaps)
    kept = ~np.isnan(columns).any(axis=0)
    scores, fitted = mix(standardized_sum(NAMES), columns, 2)
    expected, expected_model = mix(standardized_sum(NAMES), [column[kept] for column in columns])
    assert fitted == expected_model
    assert scores[kept].tobytes() == expected.tobytes()


class Counted(list[np.ndarray]):
    """Columns that count how often they are iterated over."""

    times = 0

    def __iter__(self):  # type: ignore[no-untyped-def]
        self.times += 1
        return super().__iter__()


@pytest.mark.parametrize(
    ("gaps", "times"),
    [
        ({}, 1),
        ({"a": [5]}, 1),
        ({name: [5, 6] for name in NAMES}, 1),
        (GAPS["fewer and fewer"], 1),
        ({"b": [5]}, 2),
        ({"a": [5], "c": [6]}, 2),
    ],
)
def test_columns_are_read_twice_only_if_a_later_column_has_other_gaps(
    gaps: dict[str, list[int]], times: int
) -> None:
    columns = Counted(with_gaps(300, gaps))
    mix(standardized_sum(NAMES), columns)
    assert columns.times == times
    plain = Counted(with_gaps(300, gaps))
    scores, _ = mix(plain_sum(NAMES), plain)
    assert (plain.times, np.isnan(scores).any()) == (1, bool(gaps))


def test_columns_of_an_iterator_are_refused_if_they_must_be_read_twice() -> None:
    columns = with_gaps(300, {"b": [5]})
    with pytest.raises(ValueError, match="iterated over twice"):
        mix(standardized_sum(NAMES), (column for column in columns))


@pytest.mark.parametrize(
    "gaps",
    [
        {"a": list(range(300))},
        {"a": list(range(150)), "c": list(range(150, 300))},
        {"a": [0], "b": list(range(1, 300))},
    ],
)
def test_no_example_left(gaps: dict[str, list[int]]) -> None:
    message = refusal(mix, standardized_sum(NAMES), with_gaps(300, gaps))
    assert f"column {list(gaps)[-1]!r} leaves no example" in message


def test_a_column_that_is_constant_on_the_kept_rows() -> None:
    columns = with_gaps(300, {"c": list(range(1, 300))})
    with pytest.raises(InputError, match="column 'a' has standard deviation 0"):
        mix(standardized_sum(NAMES), columns)


# ------------------------------------------------------------------------- whole selections


EXAMPLES = 600
POOL = make_pool(EXAMPLES, seed=1)
DRAWS = ("--num_samples", 900, "--repetition_penalty", 0.4)
OUTPUTS = ("subset.npy", "scores.parquet", "model.safetensors")
COMMANDS: dict[str, tuple[object, ...]] = {
    "m_flyt": ("--name", "m_flyt", "--scoring_model", "paper", *DRAWS),
    "m_flyt G 40": ("--name", "m_flyt", "--scoring_model", "paper", *DRAWS,
                    "--sampling_batch_size", 40),
    "standardized_sum": ("--name", "standardized_sum", "--score_columns", "vit-l-14", "FLYT",
                         "DFN-FT", *DRAWS),
    "in_weighted_sum": ("--name", "in_weighted_sum", "--sampling", "top_fraction",
                        "--fraction", 0.2),
    "sum": ("--name", "sum", "--sampling", "hcs", "--num_samples", 900, "--frequency_limit", 4),
    "two stages": ("--name", "neg_clip_loss_norm_sim", "--sampling", "top_fraction",
                   "--fraction", 0.2),
    "hype": ("--name", "hype", *DRAWS),
}  # fmt: skip
HOLES = {"FLYT": [3, 90], "DFN-FT": [4, 90], "negCLIPLoss": [5], "normsim_inf": [6],
         "hype_text_specificity": [7], "vit-b-32": [8]}  # fmt: skip


def gappy_scores() -> dict[str, object]:
    scores = dict(POOL.scores)
    for index, (name, rows) in enumerate(HOLES.items()):
        scores[name] = scores[name].copy()
        scores[name][rows] = (np.nan, np.inf, -np.inf)[index % 3]
    return scores


def outputs(job: Job, command: tuple[object, ...], *more: object) -> list[bytes]:
    saved = [job.folder / "saved" / name for name in OUTPUTS]
    saved[2].unlink(missing_ok=True)
    flags = [*command, "--save_scores", saved[1]]
    if command[1] != "neg_clip_loss_norm_sim":
        flags += ["--save_scoring_model", saved[2]]
    job.select(*flags, *more)
    return [path.read_bytes() for path in saved if path.exists()]


def job_of_rows(folder: Path, rows: list[int]) -> Job:
    """Write a job on some rows of the pool and of its score table."""
    pool = POOL._replace(
        uids=[POOL.uids[row] for row in rows],
        metadata=take(POOL.metadata, rows),
        scores=take(POOL.scores, rows),
    )
    return Job(pool, folder).write(3, 7)


@pytest.fixture(scope="module")
def gaps(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Write a job whose columns are not finite in a few rows, which differ between columns."""
    return Job(POOL._replace(scores=gappy_scores()), tmp_path_factory.mktemp("gaps")).write(3, 4)


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS.keys())
def test_dropping_rows_equals_a_pool_without_them(
    gaps: Job, tmp_path: Path, command: tuple[object, ...]
) -> None:
    name = str(command[1])
    columns_read = {
        "standardized_sum": ("FLYT", "DFN-FT"),
        "neg_clip_loss_norm_sim": ("negCLIPLoss", "normsim_inf"),
        "hype": ("hype_text_specificity",),
    }.get(name, PUBLISHED)
    dropped = {row for column in columns_read for row in HOLES.get(column, ())}
    assert dropped
    job = job_of_rows(tmp_path, [row for row in range(EXAMPLES) if row not in dropped])
    assert outputs(gaps, command, "--drop_nonfinite") == outputs(job, command)


@pytest.mark.parametrize("name", ["m_flyt", "standardized_sum"])
def test_dropping_rows_with_a_work_dir(gaps: Job, tmp_path: Path, name: str) -> None:
    expected = outputs(gaps, COMMANDS[name], "--drop_nonfinite")
    actual = outputs(gaps, COMMANDS[name], "--drop_nonfinite", "--work_dir", tmp_path / "work")
    assert actual == expected


@pytest.mark.parametrize("in_work_dir", [False, True])
def test_rows_that_a_table_lacks(tmp_path: Path, in_work_dir: bool) -> None:
    job = Job(POOL, tmp_path / "partial").write(2, 3)
    for path in job.scores.iterdir():
        path.unlink()
    ranges = {"FLYT": range(0, 500), "DFN-FT": range(100, 600)}
    for name, rows_present in ranges.items():
        columns = take({key: POOL.scores[key] for key in ("uid", name)}, list(rows_present))
        write_files(job.scores / name, columns, 2, 5)
    command = COMMANDS["standardized_sum"]
    more = ("--work_dir", tmp_path / "work") if in_work_dir else ()
    kept = job_of_rows(tmp_path / "rest", list(range(100, 500)))
    for path in kept.scores.iterdir():
        path.unlink()
    scores = {key: kept.pool.scores[key] for key in ("uid", "FLYT", "DFN-FT")}
    write_files(kept.scores, scores)
    actual = outputs(job, command, "--allow_partial_scores", *more)
    assert actual == outputs(kept, command)


def test_a_saved_model_brings_its_statistics_to_a_pool_with_gaps(gaps: Job) -> None:
    model = gaps.folder / "saved" / "model.safetensors"
    outputs(gaps, COMMANDS["m_flyt"], "--drop_nonfinite")
    means = load_mixing_model(str(model)).means
    flags = ("--name", "m_flyt", "--scoring_model", model, *DRAWS, "--drop_nonfinite")
    again = gaps.folder / "again.safetensors"
    gaps.select(*flags, "--save_scoring_model", again)
    assert load_mixing_model(str(again)).means == means


def test_two_tables_without_a_common_example(tmp_path: Path) -> None:
    job = Job(POOL, tmp_path).write()
    for path in job.scores.iterdir():
        path.unlink()
    for name, rows in {"FLYT": range(300), "DFN-FT": range(300, 600)}.items():
        columns = take({key: POOL.scores[key] for key in ("uid", name)}, list(rows))
        write_files(job.scores / name, columns)
    code, _, stderr = in_process(
        *job.flags(*COMMANDS["standardized_sum"], "--allow_partial_scores")
    )
    assert code == 2
    assert "column 'DFN-FT' leaves no example with a finite score in every column" in stderr
    assert not job.save_path.exists()


@pytest.mark.parametrize("gaps", GAPS.values(), ids=GAPS.keys())
@pytest.mark.parametrize("groups", [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 2]], ids=str)
def test_the_order_of_rows_changes_no_bit(gaps: dict[str, list[int]], groups: list[int]) -> None:
    """Tables may hold other rows in other orders; a gap is a NaN or, where it can be, no row."""
    columns = with_gaps(300, gaps)
    rng = np.random.default_rng(2)
    orders = []
    for group in range(3):
        mine = [columns[place] for place in range(3) if groups[place] == group]
        absent = np.flatnonzero(np.all([np.isnan(values) for values in mine], axis=0))
        rows = np.setdiff1d(rng.permutation(300), absent) if mine else np.arange(1)
        orders.append(RowOrder(300, rng.permutation(rows).astype(np.int32)))
    moved = [
        Column(values[orders[group].positions], orders[group])
        for values, group in zip(columns, groups, strict=True)
    ]
    model = LinearMixingModel(NAMES, (1.0, -2.0, 0.3), bias=0.5)
    wanted, wanted_model = mix(model, columns)
    for workers in (1, 2):
        scores, used = mix(model, moved, workers)
        assert scores.tobytes() == wanted.tobytes()
        assert used == wanted_model
