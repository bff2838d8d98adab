"""Benchmarks the whole selection, from parquet files to the saved subset.

`python -m benchmarks.selection [--part whole_job|like_for_like|all]` prints one JSON line.

whole_job: `python -m baselines_plugin --name m_flyt` over a generated pool and a score table of
the twelve published columns in other files and another row order.

like_for_like: the top 30% by a column of the metadata, with our command and with DataComp's
`clip_score`. The steps of the latter are written plainly here. If DATACOMP_DIR names a checkout,
its own `baselines.py` runs as well, with DATACOMP_PYTHON and with DATACOMP_STUBS on PYTHONPATH.
Commands run in turns and are timed from start to exit.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import multiprocessing
import os
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.measure import Child, add_dir_argument, print_result, run_child, say
from datacomp_flyt.exits import Parser
from datacomp_flyt.mixing.published import PUBLISHED_COLUMNS
from datacomp_flyt.pool.uids import UID_DTYPE, encode_uids

_SHARD_ROWS = 500_000  # DataComp's shards hold about as many
_TABLE_ROWS, _ROW_GROUPS = 3_000_000, 6
_CLIP_SCORE = "clip_l14_similarity_score"
_FRACTION = 0.3
_FEW_ROWS = 1_000


def make_pool(folder: Path, rows: int, seed: int) -> None:
    """Write metadata and score table of `rows` examples unless they exist, and read them once.

    Reading puts the files into the page cache before the first measured run.
    """
    made_from = {"rows": rows, "seed": seed, "shard_rows": _SHARD_ROWS, "table_rows": _TABLE_ROWS}
    done = folder / "made_from.json"
    if not done.exists() or json.loads(done.read_text()) != made_from:
        say(f"making {rows:,} rows in {folder}")
        for name in ("metadata", "scores"):
            (folder / name).mkdir(parents=True, exist_ok=True)
            for old in (folder / name).glob("*.parquet"):
                old.unlink()
        rng = np.random.default_rng(seed)
        uids = rng.integers(0, 2**64 - 1, 2 * rows, np.uint64, endpoint=True).view(UID_DTYPE)
        metadata = ("clip_b32_similarity_score", _CLIP_SCORE)
        _write(folder / "metadata", uids, metadata, _SHARD_ROWS, _SHARD_ROWS, rng)
        uids = uids[rng.permutation(rows)]
        row_group = max(min(rows, _TABLE_ROWS) // _ROW_GROUPS, 1)
        _write(folder / "scores", uids, PUBLISHED_COLUMNS, _TABLE_ROWS, row_group, rng)
        done.write_text(json.dumps(made_from))
    for path in sorted(folder.glob("*/*.parquet")):
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass


def _write(
    folder: Path,
    uids: NDArray[np.void],
    columns: tuple[str, ...],
    file_rows: int,
    row_group: int,
    rng: np.random.Generator,
) -> None:
    for index, start in enumerate(range(0, len(uids), file_rows)):
        part = uids[start : start + file_rows]
        table = {"uid": encode_uids(part).cast(pa.string())}
        for column in columns:
            table[column] = pa.array(rng.normal(0.2, 0.05, len(part)).astype(np.float32))
        pq.write_table(pa.table(table), folder / f"{index:08d}.parquet", row_group_size=row_group)


def part_whole_job(args: argparse.Namespace) -> dict[str, Any]:
    """Time m_flyt with the paper's weights and SCS: G = 1 several times, the paper's G once."""
    folder = args.dir / f"pool_{args.rows}"
    make_pool(folder, args.rows, args.seed)
    bare = run_child([sys.executable, "-c", "import numpy, pyarrow.parquet"])
    command = [sys.executable, "-m", "baselines_plugin", "--name", "m_flyt"]
    command += ["--scoring_model", "paper", "--sampling", "scs", "--repetition_penalty", "0.15"]
    command += ["--num_samples", str(args.rows), "--num_workers", str(args.num_workers)]
    command += ["--metadata_dir", str(folder / "metadata"), "--scores_dir", str(folder / "scores")]
    command += ["--save_path", str(folder / "subset.npy")]
    large = min(args.batch_size, args.rows)
    result: dict[str, Any] = {
        "rows": args.rows,
        "score_columns": len(PUBLISHED_COLUMNS),
        "draws": args.rows,
        "num_workers": args.num_workers,
        "seconds_are": "wall time of the command `python -m baselines_plugin --name m_flyt`, "
        "start of Python and imports included; files in the page cache",
        "peak_bytes_per_row_is": "largest ru_maxrss of the runs / rows, interpreter included",
        "bare_imports_peak_mb": bare.peak_bytes / 1e6,
    }
    for batch_size, repeats in ((1, args.repeats), (large, 1)):
        runs = []
        for repeat in range(repeats):
            say(f"whole_job: G = {batch_size:,}, run {repeat + 1} of {repeats}")
            runs.append(run_child([*command, "--sampling_batch_size", str(batch_size)]))
            if len(np.load(folder / "subset.npy", mmap_mode="r")) != args.rows:
                raise SystemExit("the length of the subset is not --num_samples")
        seconds = median(run.seconds for run in runs)
        peak = max(run.peak_bytes for run in runs)
        result[f"g{batch_size}"] = {
            "runs": repeats,
            "seconds_median": seconds,
            "seconds_all": [run.seconds for run in runs],
            "rows_per_second": args.rows / seconds,
            "peak_gb": peak / 1e9,
            "peak_bytes_per_row": peak / args.rows,
            "peak_bytes_per_row_less_bare_imports": (peak - bare.peak_bytes) / args.rows,
        }
    (folder / "subset.npy").unlink()
    return result


def plain_clip_score(metadata: Path, save_path: Path, num_workers: int) -> None:
    """Run the steps of DataComp's `clip_score --fraction`: its passes, processes and sorts."""
    paths = sorted(metadata.glob("*.parquet"))
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(num_workers) as pool:
        scores = np.concatenate(list(pool.imap_unordered(_read_scores, paths)))
    threshold = -np.sort(-scores)[int(len(scores) * _FRACTION)]
    with spawn.Pool(num_workers) as pool:
        read = partial(_read_uids_above, threshold=threshold)
        uids = np.concatenate(list(pool.imap_unordered(read, paths)))
    uids.sort()
    np.save(save_path, uids)


def _read_scores(path: Path) -> NDArray[np.float32]:
    scores: NDArray[np.float32] = pq.read_table(path, columns=[_CLIP_SCORE])[_CLIP_SCORE].to_numpy()
    return scores


def _read_uids_above(path: Path, threshold: np.float32) -> NDArray[np.void]:
    table = pq.read_table(path, columns=["uid", _CLIP_SCORE])
    uids = table["uid"].to_numpy()[table[_CLIP_SCORE].to_numpy() >= threshold]
    return np.array([(int(uid[:16], 16), int(uid[16:32], 16)) for uid in uids], UID_DTYPE)


def part_like_for_like(args: argparse.Namespace) -> dict[str, Any]:
    """Time ours, the plain steps and DataComp's own program in turns on the same files.

    Each command also runs on a pool of 1,000 rows, which measures the cost of its start, including
    worker processes and imports.
    """
    folders = {rows: args.dir / f"pool_{rows}" for rows in (args.like_rows, _FEW_ROWS)}
    for rows, folder in folders.items():
        make_pool(folder, rows, args.seed)
    jobs = _like_for_like_jobs(args.num_workers)
    runs, helps = _run_in_turns(jobs, folders, args.repeats)
    seconds, few, every = dict[str, float](), dict[str, float](), dict[str, list[float]]()
    for name, by_rows in runs.items():
        every[name] = [run.seconds for run in by_rows[args.like_rows]]
        seconds[name] = median(every[name])
        few[name] = median(run.seconds for run in by_rows[_FEW_ROWS])
    compared: dict[str, Any] = {"plain_over_ours": _ratios(seconds, few, "plain", "ours")}
    if helps:
        help_seconds = median(run.seconds for run in helps)
        seconds["datacomp_help_only"] = help_seconds
        compared["datacomp_over_ours_in_datacomp_python"] = {
            **_ratios(seconds, few, "datacomp", "ours_in_datacomp_python"),
            "datacomp_less_help_over_ours_total": (seconds["datacomp"] - help_seconds)
            / seconds["ours_in_datacomp_python"],
        }
    subsets = {name: folders[args.like_rows] / f"{name}.npy" for name in jobs}
    result = {
        "rows": args.like_rows,
        "fraction": _FRACTION,
        "kept": len(np.load(subsets["ours"], mmap_mode="r")),
        "num_workers": args.num_workers,
        "seconds_are": f"median wall time of {args.repeats} runs of a command, in turns, start of "
        "Python and imports included; files in the page cache",
        "few_rows": _FEW_ROWS,
        "ratios": compared,
        "seconds": seconds,
        "seconds_on_few_rows": few,
        "seconds_all": every,
        "peak_gb_of_largest_process": {
            name: max(run.peak_bytes for run in by_rows[args.like_rows]) / 1e9
            for name, by_rows in runs.items()
        },
        "byte_equal_to_ours": {
            name: filecmp.cmp(path, subsets["ours"], shallow=False)
            for name, path in subsets.items()
            if name != "ours"
        },
    }
    for name in jobs:
        for folder in folders.values():
            (folder / f"{name}.npy").unlink()
    return result


def _run_in_turns(
    jobs: Mapping[str, tuple[list[str], dict[str, str]]], folders: Mapping[int, Path], repeats: int
) -> tuple[dict[str, dict[int, list[Child]]], list[Child]]:
    """Run the commands in turns; return their runs by name and rows, and DataComp's `--help`."""
    runs: dict[str, dict[int, list[Child]]] = {
        name: {rows: [] for rows in folders} for name in jobs
    }
    helps = []
    for repeat in range(repeats):
        for name, (command, env) in jobs.items():
            say(f"like_for_like: {name}, run {repeat + 1} of {repeats}")
            for rows, folder in folders.items():
                subset = folder / f"{name}.npy"
                subset.unlink(missing_ok=True)
                paths = ["--metadata_dir", str(folder / "metadata"), "--save_path", str(subset)]
                runs[name][rows].append(run_child([*command, *paths], env))
            if name == "datacomp":
                helps.append(run_child([*command[:2], "--help"], env))
    return runs, helps


def _ratios(
    seconds: Mapping[str, float], few: Mapping[str, float], theirs: str, ours: str
) -> dict[str, float | None]:
    """Return the ratios of seconds, in total and without the seconds of the small pool."""
    work = seconds[ours] - few[ours]
    return {
        "total": seconds[theirs] / seconds[ours],
        "both_less_own_seconds_on_few_rows": (
            (seconds[theirs] - few[theirs]) / work if work > 0 else None
        ),
    }


def _like_for_like_jobs(num_workers: int) -> dict[str, tuple[list[str], dict[str, str]]]:
    """Return commands that lack the pool and the save path, and their environment variables."""
    workers = ["--num_workers", str(num_workers)]
    top = ["--fraction", str(_FRACTION), *workers]
    ours = ["-m", "baselines_plugin", "--name", "top_fraction", "--column", _CLIP_SCORE]
    ours += ["--keep_ties", *top]
    jobs: dict[str, tuple[list[str], dict[str, str]]] = {
        "ours": ([sys.executable, *ours], {}),
        "plain": ([sys.executable, "-m", "benchmarks.selection", "--run_plain", *workers], {}),
    }
    if "DATACOMP_DIR" in os.environ:
        program = str(Path(os.environ["DATACOMP_DIR"]).resolve() / "baselines.py")
        python = os.environ.get("DATACOMP_PYTHON", sys.executable)
        clip_score = [python, program, "--name", "clip_score", "--arch", "l14", *top]
        jobs["datacomp"] = (clip_score, {"PYTHONPATH": os.environ.get("DATACOMP_STUBS", "")})
        jobs["ours_in_datacomp_python"] = ([python, *ours], {})
    return jobs


def main() -> None:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--part", choices=["whole_job", "like_for_like", "all"], default="all")
    add("--rows", type=int, default=12_000_000, help="whole_job: examples, and draws")
    add("--like_rows", type=int, default=2_000_000, help="like_for_like: examples")
    add("--batch_size", type=int, default=100_000, help="whole_job: the G beside 1")
    add("--repeats", type=int, default=3)
    add("--num_workers", type=int, default=2)
    add("--seed", type=int, default=0, help="seed of the generated pool")
    add_dir_argument(parser)
    add("--run_plain", action="store_true", help=argparse.SUPPRESS)
    add("--metadata_dir", type=Path, help=argparse.SUPPRESS)
    add("--save_path", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run_plain:
        plain_clip_score(args.metadata_dir, args.save_path, args.num_workers)
        return
    args.dir = args.dir.resolve()
    result: dict[str, Any] = {}
    if args.part in ("whole_job", "all"):
        result["whole_job"] = part_whole_job(args)
    if args.part in ("like_for_like", "all"):
        result["like_for_like"] = part_like_for_like(args)
    print_result("selection", result)


if __name__ == "__main__":
    main()
