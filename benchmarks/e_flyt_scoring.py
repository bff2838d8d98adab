"""Measures E-FLYT scoring from embeddings against the machine's peak rate of matrix products.

`python -m benchmarks.e_flyt_scoring` prints one JSON line.

The benchmark generates a pool of 1024-wide pairs (`b32_img`, `b32_txt`, float16) twice, with stored
and with deflated npz (`numpy.savez` and `numpy.savez_compressed`; DataComp's may be either). It
measures these in turns, in one process:

- the peak, the best rate of square float32 products of NumPy on all cores
- our scoring, from npz to scores
- reading alone
- plain NumPy, which loads a whole shard and computes the formula

FLOP counts the two large products, with 2 for each multiply-add.
"""

from __future__ import annotations

import argparse
import json
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
from numpy.typing import NDArray

from benchmarks.measure import PeakMemory, print_result, say
from datacomp_flyt.exits import Parser
from datacomp_flyt.pool.embeddings import iter_embeddings
from datacomp_flyt.pool.pool import Pool, read_pool
from datacomp_flyt.pool.uids import UID_DTYPE, encode_uids
from datacomp_flyt.scorers import GluHead, e_flyt_scores
from datacomp_flyt.threads import default_num_workers, map_threads

_ARRAYS = ("b32_img", "b32_txt")
_WIDTH, _HIDDEN = 1024, 1024
_FLOP = 2 * 2 * _WIDTH * _HIDDEN  # FLOP of one example
_SQUARES = (2048, 4096)
_SAVE: dict[str, Callable[..., None]] = {"stored": np.savez, "deflated": np.savez_compressed}


def make_pool(folder: Path, kind: str, args: argparse.Namespace) -> None:
    """Write metadata and npz files unless they exist, and read them into the page cache."""
    made_from = {"rows": args.rows, "shards": args.shards, "seed": args.seed}
    done = folder / "made_from.json"
    if not done.exists() or json.loads(done.read_text()) != made_from:
        say(f"making {args.rows:,} rows in {folder}")
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*"):
            old.unlink()
        rng = np.random.default_rng(args.seed)
        uids = rng.integers(0, 2**64 - 1, 2 * args.rows, np.uint64, endpoint=True).view(UID_DTYPE)
        for shard_index, part in enumerate(np.array_split(uids, args.shards)):
            pq.write_table(
                pa.table({"uid": encode_uids(part)}), folder / f"{shard_index:08d}.parquet"
            )
            arrays = {name: _unit_rows(len(part), _WIDTH // 2, rng) for name in _ARRAYS}
            _SAVE[kind](folder / f"{shard_index:08d}.npz", **arrays)
        done.write_text(json.dumps(made_from))
    for path in folder.glob("*.npz"):
        path.read_bytes()


def _unit_rows(rows: int, width: int, rng: np.random.Generator) -> NDArray[np.float16]:
    values = rng.standard_normal((rows, width), np.float32)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    return values.astype(np.float16)


def make_head(seed: int) -> GluHead:
    """Make a head with PyTorch's default initialization."""
    rng = np.random.default_rng(seed)
    shapes = {"w1": (_HIDDEN, _WIDTH), "w3": (_HIDDEN, _WIDTH), "w2": (1, _HIDDEN)}
    tensors: dict[str, NDArray[Any]] = {}
    for part, shape in shapes.items():
        bound = shape[1] ** -0.5
        tensors[f"layers.0.{part}.weight"] = rng.uniform(-bound, bound, shape)
        tensors[f"layers.0.{part}.bias"] = rng.uniform(-bound, bound, shape[0])
    return GluHead.from_tensors(tensors, _ARRAYS, "the benchmark")


def plain_scores(head: GluHead, pool: Pool) -> NDArray[np.float32]:
    """Score shard after shard with whole arrays, as a straightforward program would."""
    scores = np.empty(len(pool), np.float32)
    (layer,) = head.layers
    for shard, places in zip(pool.shards, pool.positions, strict=True):
        with np.load(shard.path.replace(".parquet", ".npz")) as stored:
            parts = [stored[name].astype(np.float32) for name in _ARRAYS]
        z = np.concatenate(
            [part / np.linalg.norm(part, axis=1, keepdims=True) for part in parts], axis=1
        )
        gate = z @ layer.w1.T + layer.b1
        hidden = gate / (1 + np.exp(-gate)) * (z @ layer.w3.T + layer.b3)
        scores[places] = (hidden @ layer.w2.T + layer.b2)[:, 0]
    return scores


def read_all(pool: Pool, num_workers: int) -> None:
    """Read and normalise embeddings without scoring them."""

    def read(shard_index: int) -> int:
        return sum(len(block) for block in iter_embeddings(pool.shards[shard_index], _ARRAYS))

    map_threads(read, range(len(pool.shards)), num_workers)


def peak_gflops(seed: int) -> float:
    """Measure the fastest of several square matrix products."""
    rng = np.random.default_rng(seed)
    best = 0.0
    for size in _SQUARES:
        a, b = rng.standard_normal((2, size, size), np.float32)
        product = np.empty_like(a)
        for _ in range(2):
            seconds, _ = _timed(partial(np.matmul, a, b, out=product))
            best = max(best, 2 * size**3 / seconds / 1e9)
    return best


def _timed(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def measure(kind: str, args: argparse.Namespace) -> dict[str, Any]:
    """Measure everything on one of the two pools."""
    folder = args.dir / f"embeddings_{kind}_{args.rows}"
    make_pool(folder, kind, args)
    head = make_head(args.seed)
    pool = read_pool(str(folder), args.num_workers, progress=False)
    jobs: dict[str, Callable[[], Any]] = {
        "ours": lambda: e_flyt_scores(head, pool, args.num_workers, progress=False),
        "reading_alone": lambda: read_all(pool, args.num_workers),
        "plain": lambda: plain_scores(head, pool),
    }
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    outputs: dict[str, Any] = {}
    memory = {name: PeakMemory() for name in jobs}
    peaks = [peak_gflops(args.seed)]
    for repeat in range(args.repeats):
        for name, job in jobs.items():
            say(f"{kind}: {name}, run {repeat + 1} of {args.repeats}")
            with memory[name]:
                took, outputs[name] = _timed(job)
            seconds[name].append(took)
            peaks.append(peak_gflops(args.seed))
    wide = float(np.std(outputs["plain"], dtype=np.float64))
    difference = float(np.abs(outputs["ours"] - outputs["plain"]).max())
    if not difference < 1e-3 * wide:
        raise SystemExit(f"scores differ by {difference} from plain NumPy's, spread {wide}")
    middle = {name: median(every) for name, every in seconds.items()}
    rate = args.rows / middle["ours"]
    return {
        "rows_per_second": rate,
        "gflops": rate * _FLOP / 1e9,
        "gemm_peak_gflops": max(peaks),
        "share_of_gemm_peak": rate * _FLOP / 1e9 / max(peaks),
        "plain_over_ours_seconds": middle["plain"] / middle["ours"],
        "largest_difference_over_spread": difference / wide,
        "seconds": middle,
        "seconds_all": seconds,
        "gemm_gflops_all": peaks,
        "memory_rise_mb": {name: memory[name].megabytes for name in jobs},
    }


def main() -> None:
    """Measure, and print a line of JSON."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--kind", choices=[*_SAVE, "all"], default="all", help="compression of the npz files")
    add("--rows", type=int, default=131_072)
    add("--shards", type=int, default=8)
    add("--repeats", type=int, default=3)
    add("--num_workers", type=int, default=default_num_workers())
    add("--seed", type=int, default=0, help="seed of the pool and the weights")
    add(
        "--dir",
        type=Path,
        default=Path(tempfile.gettempdir()) / "datacomp_flyt_benchmarks",
        help="where pools are made, and found again by the next run (default: %(default)s)",
    )
    args = parser.parse_args()
    args.dir = args.dir.resolve()
    kinds = list(_SAVE) if args.kind == "all" else [args.kind]
    result: dict[str, Any] = {
        "rows": args.rows,
        "shards": args.shards,
        "width": _WIDTH,
        "hidden": _HIDDEN,
        "num_workers": args.num_workers,
        "flop_per_row": _FLOP,
        "seconds_are": f"medians of {args.repeats} runs in turns, npz (in the page cache) to "
        "scores in the pool's order; uids were read before",
    }
    print_result("e_flyt_scoring", result | {kind: measure(kind, args) for kind in kinds})


if __name__ == "__main__":
    main()
