"""Measures negCLIPLoss and NormSim against the machine's matrix products, and their memory.

`python -m benchmarks.scorers` prints one JSON line.

The kernels run on one thread of this process, as in a worker. They run in turns with the peak,
which is the best rate of torch's square float32 products on that thread, and with the plain formula
on the whole matrix. The command runs from start to exit with all workers on pools of two sizes, in
turns with the peak of as many threads; the memory of its largest process must not grow with the
pool. FLOP counts the matrix products, with 2 for each multiply-add. bf16 is compared with float32
on the embeddings of the demo pool.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from benchmarks.measure import PeakMemory, add_dir_argument, print_result, run_child, say
from datacomp_flyt.demo import POOL
from datacomp_flyt.exits import Parser
from datacomp_flyt.pool.uids import UID_DTYPE, encode_uids
from datacomp_flyt.scorers.base.matrix_products import Compute
from datacomp_flyt.scorers.neg_clip_loss import neg_clip_loss_of_batch
from datacomp_flyt.scorers.norm_sim import norms
from datacomp_flyt.threads import default_num_workers

_WIDTH = 512
_SQUARES = (2048, 4096)
_NORM_SIM_ROWS = 16_384
Rows = NDArray[np.float32]


def unit_rows(rows: int, rng: np.random.Generator) -> Rows:
    """Generate float32 [rows, 512] of unit norm."""
    values = rng.standard_normal((rows, _WIDTH), np.float32)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    return values


def plain_neg_clip_loss(images: Rows, texts: Rows, temperature: float) -> torch.Tensor:
    """Compute negCLIPLoss from the whole matrix, without tiles."""
    logits = torch.from_numpy(images) @ torch.from_numpy(texts).T / temperature
    return temperature * (
        logits.diagonal() - (torch.logsumexp(logits, 0) + torch.logsumexp(logits, 1)) / 2
    )


def plain_norm_sim(images: Rows, targets: Rows) -> torch.Tensor:
    """Compute the largest similarity, 3,000 examples at a time as in the public code."""
    there = torch.from_numpy(targets).T
    parts = torch.from_numpy(images).split(3000)
    return torch.cat([torch.linalg.vector_norm(part @ there, torch.inf, dim=1) for part in parts])


def peak_gflops() -> float:
    """Return the best rate of several square products with torch's current threads."""
    best = 0.0
    for size in _SQUARES:
        a, b = torch.randn(2, size, size)
        for _ in range(2):
            best = max(best, 2 * size**3 / _timed(partial(torch.mm, a, b))[0] / 1e9)
    return best


def _timed(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def measure_kernels(args: argparse.Namespace) -> dict[str, Any]:
    """Time one batch of each scorer on one thread, in turns with the peak and the plain formula."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(args.seed)
    images, texts = unit_rows(args.batch_size, rng), unit_rows(args.batch_size, rng)
    targets, candidates = unit_rows(args.targets, rng), unit_rows(_NORM_SIM_ROWS, rng)
    cpu = Compute("cpu", "fp32")
    there = torch.from_numpy(candidates), torch.from_numpy(targets)
    jobs: dict[str, tuple[float, Callable[[], Any], Callable[[], Any]]] = {
        "neg_clip_loss": (
            2.0 * args.batch_size**2 * _WIDTH,
            lambda: neg_clip_loss_of_batch(images, texts, 0.01, cpu),
            lambda: plain_neg_clip_loss(images, texts, 0.01),
        ),
        "norm_sim": (
            2.0 * _NORM_SIM_ROWS * args.targets * _WIDTH,
            lambda: norms(*there, torch.inf, cpu.tile),
            lambda: plain_norm_sim(candidates, targets),
        ),
    }
    result: dict[str, Any] = {}
    for name, (flop, ours, plain) in jobs.items():
        seconds: dict[str, list[float]] = {"ours": [], "plain": []}
        peaks, memory = [peak_gflops()], {"ours": PeakMemory(), "plain": PeakMemory()}
        values = {}
        for repeat in range(args.repeats):
            for side, job in (("ours", ours), ("plain", plain)):
                say(f"{name}: {side}, run {repeat + 1} of {args.repeats}")
                with memory[side]:
                    took, output = _timed(job)
                seconds[side].append(took)
                values[side] = np.asarray(output)
                peaks.append(peak_gflops())
        difference = float(np.abs(values["ours"] - values["plain"]).max())
        if not difference < 1e-5:
            raise SystemExit(f"{name}: {difference} from the plain formula")
        rate = flop / median(seconds["ours"]) / 1e9
        result[name] = {
            "gflops": rate,
            "gemm_gflops": median(peaks),
            "gemm_peak_gflops": max(peaks),
            "share_of_gemm": rate / median(peaks),
            "share_of_gemm_peak": rate / max(peaks),
            "plain_over_ours_seconds": median(seconds["plain"]) / median(seconds["ours"]),
            "largest_difference": difference,
            "seconds_all": seconds,
            "memory_rise_mb": {side: memory[side].megabytes for side in memory},
        }
    return result


def make_pool(folder: Path, shards: int, args: argparse.Namespace) -> None:
    """Write shards of one batch each, in float16 as DataComp's."""
    if folder.exists() and len(list(folder.glob("*.npz"))) == shards:
        return
    say(f"making {shards} shards in {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(args.seed)
    for index in range(shards):
        rows = args.batch_size
        uids = rng.integers(0, 2**64 - 1, 2 * rows, np.uint64, endpoint=True).view(UID_DTYPE)
        np.savez(
            folder / f"{index:08d}.npz",
            b32_img=unit_rows(rows, rng).astype(np.float16),
            b32_txt=unit_rows(rows, rng).astype(np.float16),
        )
        pq.write_table(pa.table({"uid": encode_uids(uids)}), folder / f"{index:08d}.parquet")


def measure_job(args: argparse.Namespace) -> dict[str, Any]:
    """Time the command over pools of two sizes."""
    torch.set_num_threads(args.num_workers)
    args.dir.mkdir(parents=True, exist_ok=True)
    targets = args.dir / f"targets_{args.targets}.npy"
    np.save(targets, unit_rows(args.targets, np.random.default_rng(args.seed)))
    scorers = {
        "neg_clip_loss": (
            2.0 * args.batch_size * _WIDTH,
            ["--batch_size", str(args.batch_size), "--num_partitions", "1"],
        ),
        "norm_sim": (2.0 * args.targets * _WIDTH, ["--targets", str(targets)]),
    }
    result: dict[str, Any] = {}
    for name, (flop_per_row, flags) in scorers.items():
        result[name] = {}
        for shards in (args.num_workers, 3 * args.num_workers):
            pool = args.dir / f"scorers_{args.batch_size}_{shards}"
            make_pool(pool, shards, args)
            runs, peaks = [], [peak_gflops()]
            for repeat in range(args.repeats):
                say(f"{name}, {shards} shards, run {repeat + 1} of {args.repeats}")
                out = Path(tempfile.mkdtemp(dir=args.dir))
                command = [sys.executable, "-m", "datacomp_flyt.cli", "score", "--scorer", name]
                command += ["--metadata_dir", str(pool), "--scores_dir", str(out), "--device"]
                runs.append(
                    run_child([*command, "cpu", "--num_workers", str(args.num_workers), *flags])
                )
                shutil.rmtree(out)
                peaks.append(peak_gflops())
            rows, seconds = shards * args.batch_size, [run.seconds for run in runs]
            rate = rows * flop_per_row / median(seconds) / 1e9
            result[name][f"{rows}_rows"] = {
                "rows_per_second": rows / median(seconds),
                "gflops": rate,
                "share_of_gemm": rate / median(peaks),
                "share_of_gemm_peak": rate / max(peaks),
                "seconds_all": seconds,
                "largest_process_mb": max(run.peak_bytes for run in runs) / 1e6,
            }
    return result


def measure_bfloat16() -> dict[str, Any]:
    """Compare scores of the demo pool with factors in bfloat16 and in float32."""
    parts = [np.load(path) for path in sorted((POOL / "metadata").glob("*.npz"))]
    images, texts = (
        np.concatenate([part[name] for part in parts]).astype(np.float32)
        for name in ("b32_img", "b32_txt")
    )
    halves = images[::2], images[1::2]
    scores: dict[str, list[NDArray[np.float64]]] = {"neg_clip_loss": [], "norm_sim": []}
    for compute in (Compute("cpu", "fp32"), Compute("cpu", "bf16")):
        scores["neg_clip_loss"].append(neg_clip_loss_of_batch(images, texts, 0.01, compute))
        rows, targets = (compute.factor(compute.put(half)) for half in halves)
        scores["norm_sim"].append(norms(rows, targets, torch.inf, compute.tile).numpy())
    result = {}
    for name, (exact, in_bfloat16) in scores.items():
        errors = np.abs(in_bfloat16 - exact)
        result[name] = {
            "spread": float(exact.std()),
            "mean_error": float(errors.mean()),
            "largest_error": float(errors.max()),
            "rank_correlation": float(spearmanr(exact, in_bfloat16).statistic),
        }
    return result


def main() -> None:
    """Run the benchmark from the command line."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add(
        "--batch_size",
        type=int,
        default=32_768,
        help="batch size of negCLIPLoss, and rows of a shard",
    )
    add("--targets", type=int, default=100_000)
    add("--repeats", type=int, default=3)
    add("--num_workers", type=int, default=default_num_workers())
    add("--seed", type=int, default=0)
    add_dir_argument(parser)
    args = parser.parse_args()
    args.dir = args.dir.resolve()
    result = {
        "batch_size": args.batch_size,
        "width": _WIDTH,
        "targets": args.targets,
        "num_workers": args.num_workers,
        "seconds_are": f"medians of {args.repeats} runs in turns",
        "kernels_one_thread": measure_kernels(args),
        "whole_job": measure_job(args),
        "bf16_on_the_demo_pool": measure_bfloat16(),
    }
    print_result("scorers", result)


if __name__ == "__main__":
    main()
