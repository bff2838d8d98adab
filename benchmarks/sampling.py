"""Benchmarks Soft Cap Sampling against the paper's loop, and at DataComp's medium scale.

`python -m benchmarks.sampling [--part naive|medium|all]` prints one JSON line.

naive: the loop of Algorithm 2 against `soft_cap_counts` with G = 1 and with the G of the loop, in
turns in one process. The loop has the steps of FLYT's notebook, without its pandas index and
growing array, which cost more.

medium: 119M scores and 128M draws. Every run is a new process that makes scores and uids, times
`numpy.exp(scores)`, and then samples once.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import ROOT, PeakMemory, memory, print_result, reset_peak_memory, say
from datacomp_flyt.exits import Parser
from datacomp_flyt.pool.uids import UID_DTYPE
from datacomp_flyt.samplers import soft_cap_counts


def naive_rounds(
    scores: NDArray[np.float64],
    num_rounds: int,
    size: int,
    penalty: float,
    random: np.random.RandomState,
) -> list[NDArray[np.int64]]:
    """Run rounds of the loop, which subtract the penalty from `scores`; return the draws."""
    batches = []
    for _ in range(num_rounds):
        weights = np.exp(scores - scores.max())
        weights /= weights.sum()
        batch = random.choice(len(scores), size=size, replace=False, p=weights)
        scores[batch] -= penalty
        batches.append(batch)
    return batches


def make_pool(
    args: argparse.Namespace, length: int
) -> tuple[NDArray[np.float64], NDArray[np.void]]:
    """Generate normal scores and random 128-bit uids."""
    rng = np.random.default_rng(args.seed)
    scores = rng.normal(0.0, args.score_std, length)
    words = rng.integers(0, 2**64 - 1, 2 * length, np.uint64, endpoint=True)
    return scores, words.view(UID_DTYPE)


def soft_cap(
    args: argparse.Namespace,
    scores: NDArray[np.float64],
    uids: NDArray[np.void],
    num_samples: int,
    batch_size: int,
) -> float:
    """Time one call, in seconds."""
    start = time.perf_counter()
    counts = soft_cap_counts(
        scores, uids, num_samples, args.alpha, args.seed, batch_size, num_workers=args.num_workers
    )
    seconds = time.perf_counter() - start
    if int(counts.sum()) != num_samples:
        raise SystemExit(f"{int(counts.sum()):,} draws instead of {num_samples:,}")
    return seconds


def part_naive(args: argparse.Namespace) -> dict[str, Any]:
    """Time chunks of the naive loop and our two calls in turns."""
    scores, uids = make_pool(args, args.examples)
    rounds, left_over = divmod(args.draws, args.round_size)
    if left_over:
        raise SystemExit(f"--draws {args.draws} is no multiple of --round_size {args.round_size}")
    timed = min(args.naive_rounds, rounds)
    repeats = min(args.repeats, timed)
    random = np.random.RandomState(args.seed)
    naive_scores = scores.copy()
    drawn: list[NDArray[np.int64]] = []
    chunks: list[tuple[int, float]] = []
    ours: dict[int, list[float]] = {1: [], args.round_size: []}
    peaks = {name: PeakMemory() for name in ("naive", *ours)}
    for repeat in range(repeats):
        say(f"naive: repeat {repeat + 1} of {repeats}")
        num_rounds = timed * (repeat + 1) // repeats - timed * repeat // repeats
        with peaks["naive"]:
            start = time.perf_counter()
            drawn += naive_rounds(naive_scores, num_rounds, args.round_size, args.alpha, random)
            chunks.append((num_rounds, time.perf_counter() - start))
        for batch_size, seconds in ours.items():
            with peaks[batch_size]:
                seconds.append(soft_cap(args, scores, uids, args.draws, batch_size))
    if sum(map(len, drawn)) != timed * args.round_size:
        raise SystemExit("the naive loop has a wrong number of draws")
    per_round = median(seconds / num_rounds for num_rounds, seconds in chunks)
    g1, g_round = (median(seconds) for seconds in ours.values())
    return {
        "examples": args.examples,
        "draws": args.draws,
        "alpha": args.alpha,
        "score_std": args.score_std,
        "naive_loop": "float64 softmax over the pool, numpy RandomState.choice(replace=False, "
        f"p=weights) of {args.round_size}, subtract alpha; one thread",
        "naive_rounds": rounds,
        "naive_rounds_timed": timed,
        "naive_seconds_timed": sum(seconds for _, seconds in chunks),
        "naive_seconds_per_round_by_chunk": [
            seconds / num_rounds for num_rounds, seconds in chunks
        ],
        "naive_seconds_extrapolated": per_round * rounds,
        "naive_seconds_extrapolated_is": "median of the chunks' seconds per round x naive_rounds",
        "ours_num_workers": args.num_workers,
        "ours_seconds_g1": g1,
        f"ours_seconds_g{args.round_size}": g_round,
        "ours_seconds_are": f"median of {repeats} calls, naive and ours in turns",
        "ours_seconds_g1_all": ours[1],
        f"ours_seconds_g{args.round_size}_all": ours[args.round_size],
        "ratio_g1": per_round * rounds / g1,
        f"ratio_g{args.round_size}": per_round * rounds / g_round,
        "peak_mb_beside_what_was_resident": {
            "naive": peaks["naive"].megabytes,
            "ours_g1": peaks[1].megabytes,
            f"ours_g{args.round_size}": peaks[args.round_size].megabytes,
        },
    }


def medium_run(args: argparse.Namespace, batch_size: int) -> dict[str, Any]:
    """Make a pool, time `numpy.exp` three times, and sample once; runs in a new process."""
    scores, uids = make_pool(args, args.medium_examples)
    exp_seconds = []
    for _ in range(3):
        start = time.perf_counter()
        np.exp(scores)
        exp_seconds.append(time.perf_counter() - start)
    was_reset = reset_peak_memory()
    seconds = soft_cap(args, scores, uids, args.medium_draws, batch_size)
    peak = memory("VmHWM")
    inputs = scores.nbytes + uids.nbytes
    return {
        "seconds": seconds,
        "exp_seconds": exp_seconds,
        "inputs_gb": inputs / 1e9,
        "peak_gb_beside_inputs": None if peak is None else (peak - inputs) / 1e9,
        "peak_reset_after_inputs": was_reset,
    }


def part_medium(args: argparse.Namespace) -> dict[str, Any]:
    """Run new processes in turns with G = 1 and the paper's G."""
    large = args.medium_batch_size
    runs: dict[int, list[dict[str, Any]]] = {1: [], large: []}
    num_runs = {1: args.medium_repeats, large: args.medium_batch_repeats}
    for repeat in range(max(num_runs.values())):
        for batch_size in runs:
            if repeat < num_runs[batch_size]:
                say(f"medium: G = {batch_size:,}, run {repeat + 1} of {num_runs[batch_size]}")
                command = [sys.executable, "-m", "benchmarks.sampling", *sys.argv[1:]]
                command += ["--in_child", str(batch_size)]
                done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
                runs[batch_size].append(json.loads(done.stdout))
    exp_seconds = median(
        seconds for made in runs.values() for run in made for seconds in run["exp_seconds"]
    )
    result: dict[str, Any] = {
        "scores": args.medium_examples,
        "draws": args.medium_draws,
        "alpha": args.alpha,
        "score_std": args.score_std,
        "ours_num_workers": args.num_workers,
        "inputs_gb": runs[1][0]["inputs_gb"],
        "inputs_are": "float64 scores and u8,u8 uids",
        "exp_seconds": exp_seconds,
        "exp_seconds_is": "median of plain numpy.exp(scores), one thread, three in each process",
        "peak_gb_beside_inputs_is": "largest VmHWM of a fresh process, interpreter included, less "
        "the bytes of scores and uids",
        "peak_reset_after_inputs": all(
            run["peak_reset_after_inputs"] for made in runs.values() for run in made
        ),
    }
    for batch_size, made in runs.items():
        seconds = median(run["seconds"] for run in made)
        known = [run["peak_gb_beside_inputs"] for run in made]
        result[f"g{batch_size}"] = {
            "runs": len(made),
            "seconds_median": seconds,
            "seconds_all": [run["seconds"] for run in made],
            "times_exp_pass": seconds / exp_seconds,
            "peak_gb_beside_inputs": None if None in known else max(known),
        }
    return result


def main() -> None:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--part", choices=["naive", "medium", "all"], default="all")
    add("--examples", type=int, default=1_280_000, help="naive: scores")
    add("--draws", type=int, default=1_280_000, help="naive: draws in all")
    add("--round_size", type=int, default=1_000, help="naive: draws in a round of the loop, and G")
    add("--naive_rounds", type=int, default=128, help="naive: rounds to time (1280: whole loop)")
    add("--repeats", type=int, default=5, help="naive: calls of ours, and chunks of the loop")
    add("--medium_examples", type=int, default=119_000_000)
    add("--medium_draws", type=int, default=128_000_000)
    add("--medium_batch_size", type=int, default=100_000, help="medium: the G beside 1")
    add("--medium_repeats", type=int, default=3, help="medium: processes with G = 1")
    add("--medium_batch_repeats", type=int, default=1, help="medium: processes with the other G")
    add("--alpha", type=float, default=0.15, help="repetition penalty")
    add("--score_std", type=float, default=2.0)
    add("--num_workers", type=int, default=2)
    add("--seed", type=int, default=0)
    add("--in_child", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.in_child is not None:
        print(json.dumps(medium_run(args, args.in_child)))
        return
    result: dict[str, Any] = {}
    if args.part in ("naive", "all"):
        result["naive"] = part_naive(args)
    if args.part in ("medium", "all"):
        result["medium"] = part_medium(args)
    print_result("sampling", result)


if __name__ == "__main__":
    main()
