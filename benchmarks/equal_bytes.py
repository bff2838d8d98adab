"""Checks that selection in memory, with `--work_dir` and on Ray gives equal bytes.

`python -m benchmarks.equal_bytes` prints one JSON line, and exits with 1 if bytes differ. Each
subset is written by a command that is timed from start to exit. For each way, the commands of a
method share a work folder: the first command sorts the pool, and the others use the sorted files.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import add_dir_argument, print_result, run_child, say
from benchmarks.selection import make_pool
from datacomp_flyt.exits import Parser
from datacomp_flyt.files.digest import file_digest

_PENALTY = ("--repetition_penalty", "0.15")
_M_FLYT = ("--name", "m_flyt", "--scoring_model", "paper")
_TWO_STAGES = ("--name", "neg_clip_loss_norm_sim")


def jobs(draws: int, batch_size: int) -> dict[str, dict[str, tuple[str, ...]]]:
    """Return the flags of every sampler and of a two-stage method, by method and name."""
    many = ("--num_samples", str(draws))
    scs, rounds = (*many, *_PENALTY), ("--sampling_batch_size", str(batch_size))
    return {
        "m_flyt": {
            "scs_g1": (*_M_FLYT, "--sampling", "scs", *scs),
            f"scs_g{batch_size}": (*_M_FLYT, "--sampling", "scs", *scs, *rounds),
            "hcs": (*_M_FLYT, "--sampling", "hcs", *many, "--frequency_limit", "10"),
            "no_cap": (*_M_FLYT, "--sampling", "no_cap", *many),
            "top_fraction": (*_M_FLYT, "--sampling", "top_fraction", "--fraction", "0.2"),
            "top_fraction_with_ties": (
                *_M_FLYT, "--sampling", "top_fraction", "--fraction", "0.2", "--keep_ties",
            ),
        },
        "neg_clip_loss_norm_sim": {
            "top_fraction": (*_TWO_STAGES, "--sampling", "top_fraction", "--fraction", "0.2"),
            "scs_g1": (*_TWO_STAGES, "--sampling", "scs", *scs),
        },
    }  # fmt: skip


def compare(args: argparse.Namespace, pool: Path, folder: Path) -> dict[str, Any]:
    """Run every command in each way; return digests, seconds and peaks."""
    ray = ["--engine", "ray", *(["--ray_address", args.ray_address] if args.ray_address else [])]
    results: dict[str, Any] = {}
    for method, samplers in jobs(args.draws or args.rows, min(args.batch_size, args.rows)).items():
        ways: dict[str, list[str]] = {
            "memory": [],
            "files": ["--work_dir", str(folder / f"{method}_files")],
            "ray": ["--work_dir", str(folder / f"{method}_ray"), *ray],
        }
        for sampler, flags in samplers.items():
            name = f"{method} {sampler}"
            results[name] = {}
            for way, where in ways.items():
                say(f"{name}: {way}")
                results[name][way] = _run(args, pool, folder, [*flags, *where])
        for way in ("files", "ray"):
            shutil.rmtree(folder / f"{method}_{way}")
    return results


def _run(args: argparse.Namespace, pool: Path, folder: Path, flags: list[str]) -> dict[str, Any]:
    subset, scores = folder / "subset.npy", folder / "scores.parquet"
    command = [sys.executable, "-m", "baselines_plugin", "--num_workers", str(args.num_workers)]
    command += ["--metadata_dir", str(pool / "metadata"), "--scores_dir", str(pool / "scores")]
    command += ["--save_path", str(subset), "--save_scores", str(scores), *flags]
    child = run_child(command)
    result = {
        "sha256": file_digest(subset),
        "sha256_of_scores": file_digest(scores),
        "entries": len(np.load(subset, mmap_mode="r")),
        "seconds": child.seconds,
        "peak_gb_of_largest_process": child.peak_bytes / 1e9,
    }
    subset.unlink()
    scores.unlink()
    return result


def main() -> None:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--rows", type=int, default=10_000_000)
    add("--draws", type=int, help="draws of scs, hcs and no_cap (default: as many as rows)")
    add("--batch_size", type=int, default=100_000, help="the G beside 1")
    add("--num_workers", type=int, default=2)
    add("--ray_address", help="address of a running cluster; without it each command starts Ray")
    add("--seed", type=int, default=0, help="seed of the generated pool")
    add_dir_argument(parser)
    args = parser.parse_args()
    pool = args.dir.resolve() / f"pool_{args.rows}"
    make_pool(pool, args.rows, args.seed)
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        results = compare(args, pool, Path(folder))
    equal = {
        name: len({(way["sha256"], way["sha256_of_scores"]) for way in ways.values()}) == 1
        for name, ways in results.items()
    }
    result = {
        "rows": args.rows,
        "draws": args.draws or args.rows,
        "num_workers": args.num_workers,
        "ray_address": args.ray_address,
        "seconds_are": "wall time of one command, start of Python, of its workers and of Ray "
        "included; of files and ray, the first of a method sorts the pool; files in the page cache",
        "peak_is": "of the command's own process or the largest of its children; Ray's are not",
        "all_equal": all(equal.values()),
        "equal": equal,
        "ways": results,
    }
    print_result("equal_bytes", result)
    sys.exit(0 if all(equal.values()) else 1)


if __name__ == "__main__":
    main()
