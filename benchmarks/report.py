"""Benchmarks `datacomp-flyt report` on a large pool: seconds and peak memory.

`python -m benchmarks.report [--rows N]` prints one JSON line. The pool is generated: metadata with
captions and two CLIP scores, a score table of the twelve published columns in other files and
another row order, and two selections by the paper's mixing weights. Pictures are left out, since
their cost does not depend on the size of the pool.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.measure import add_dir_argument, print_result, run_child, say
from benchmarks.selection import make_pool
from datacomp_flyt.exits import Parser

_WORDS = 5_000  # size of the vocabulary; the frequencies follow Zipf's law
_CAPTION_WORDS = 9  # the mean of DataComp's captions


def add_captions(metadata: Path, seed: int) -> None:
    """Give each metadata file a column of captions, unless it has one."""
    rng = np.random.default_rng(seed)
    words = np.array([f"word{_letters(index)}" for index in range(_WORDS)])
    frequency = 1 / np.arange(1, _WORDS + 1)
    for path in sorted(metadata.glob("*.parquet")):
        if "text" in pq.read_schema(path).names:
            continue
        table = pq.read_table(path)
        drawn = rng.choice(words, (len(table), _CAPTION_WORDS), p=frequency / frequency.sum())
        table = table.append_column("text", pa.array(_captions(drawn)))
        pq.write_table(table, path, row_group_size=len(table))


def _letters(index: int) -> str:
    return "".join(chr(ord("a") + int(digit)) for digit in f"{index:04d}")


def _captions(words: NDArray[np.str_]) -> list[str]:
    return [" ".join(row) for row in words.tolist()]


def make_selections(folder: Path, rows: int, num_workers: int) -> dict[str, Path]:
    """Select by Soft Cap Sampling with as many draws as rows, and the top 20%."""
    settings = {
        "scs": ["--sampling", "scs", "--num_samples", str(rows), "--repetition_penalty", "0.15"],
        "top": ["--sampling", "top_fraction", "--fraction", "0.2"],
    }
    paths = {name: folder / f"report_{name}.npy" for name in settings}
    for name, flags in settings.items():
        if not paths[name].exists():
            say(f"selecting: {name}")
            command = [sys.executable, "-m", "baselines_plugin", "--name", "m_flyt"]
            command += ["--scoring_model", "paper", "--num_workers", str(num_workers), *flags]
            command += ["--metadata_dir", str(folder / "metadata")]
            command += ["--scores_dir", str(folder / "scores"), "--save_path", str(paths[name])]
            run_child(command)
    return paths


def main() -> None:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--rows", type=int, default=10_000_000, help="examples of the pool (default: %(default)s)")
    add("--repeats", type=int, default=3)
    add("--num_workers", type=int, default=2)
    add("--seed", type=int, default=0, help="seed of the generated pool")
    add_dir_argument(parser)
    args = parser.parse_args()
    folder = args.dir.resolve() / f"report_pool_{args.rows}"
    make_pool(folder, args.rows, args.seed)
    say("writing captions")
    add_captions(folder / "metadata", args.seed)
    paths = make_selections(folder, args.rows, args.num_workers)

    bare = run_child([sys.executable, "-c", "import numpy, pyarrow.parquet, matplotlib.figure"])
    command = [sys.executable, "-m", "datacomp_flyt.cli", "report", "--scoring_model", "paper"]
    command += ["--metadata_dir", str(folder / "metadata"), "--scores_dir", str(folder / "scores")]
    command += ["--subset", *(f"{name}={path}" for name, path in paths.items())]
    command += ["--num_workers", str(args.num_workers), "--out", str(folder / "report")]
    runs = []
    for repeat in range(args.repeats):
        say(f"report, run {repeat + 1} of {args.repeats}")
        runs.append(run_child(command))
    seconds = median(run.seconds for run in runs)
    result: dict[str, Any] = {
        "rows": args.rows,
        "score_columns": 12,
        "selections": list(paths),
        "num_workers": args.num_workers,
        "seconds_are": "wall time of the command `datacomp-flyt report`, start of Python and "
        "imports included; files in the page cache",
        "seconds_median": seconds,
        "seconds_all": [run.seconds for run in runs],
        "rows_per_second": args.rows / seconds,
        "peak_gb": max(run.peak_bytes for run in runs) / 1e9,
        "bare_imports_peak_mb": bare.peak_bytes / 1e6,
        "page_mb": (folder / "report" / "index.html").stat().st_size / 1e6,
    }
    print_result("report", result)


if __name__ == "__main__":
    main()
