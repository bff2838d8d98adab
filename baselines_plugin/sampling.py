"""From the flags to a sampler."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt.errors import InputError
from datacomp_flyt.samplers import (
    hard_cap_counts,
    no_cap_counts,
    soft_cap_counts,
    top_fraction_counts,
)
from datacomp_flyt.samplers.scales import SCALES

Scores = NDArray[np.floating]
Uids = NDArray[np.void]
Counts = NDArray[np.int32]


def _scs(args: argparse.Namespace, scores: Scores, uids: Uids) -> Counts:
    scale = SCALES.get(args.scale)
    penalty, batch_size = args.repetition_penalty, args.sampling_batch_size
    if penalty is None:
        if scale is None:
            raise InputError("scs wants --repetition_penalty, or --scale for the paper's")
        penalty = scale.repetition_penalty
    if batch_size is None:
        batch_size = scale.sampling_batch_size if scale else 1
        if batch_size > len(scores):
            print(
                f"--scale {args.scale} samples {batch_size:,} different examples at once and the "
                f"pool has {len(scores):,}: sampling one at a time, which that approximates"
            )
            batch_size = 1
    num_samples = _num_samples(args)
    print(f"soft cap sampling: {num_samples:,} draws, alpha {penalty}, G {batch_size:,}")
    return soft_cap_counts(
        scores, uids, num_samples, penalty, args.seed, batch_size, num_workers=args.num_workers
    )


def _hcs(args: argparse.Namespace, scores: Scores, uids: Uids) -> Counts:
    if args.frequency_limit is None:
        raise InputError("hcs wants --frequency_limit (the paper tried 5 to 25)")
    return hard_cap_counts(
        scores,
        uids,
        _num_samples(args),
        args.frequency_limit,
        args.seed,
        num_workers=args.num_workers,
    )


def _no_cap(args: argparse.Namespace, scores: Scores, uids: Uids) -> Counts:
    return no_cap_counts(scores, uids, _num_samples(args), args.seed, num_workers=args.num_workers)


def _top_fraction(args: argparse.Namespace, scores: Scores, uids: Uids) -> Counts:
    if args.fraction is None:
        raise InputError("top_fraction wants --fraction (the paper's is 0.2)")
    return top_fraction_counts(scores, uids, args.fraction, args.keep_ties)


def _num_samples(args: argparse.Namespace) -> int:
    if args.num_samples is not None:
        return int(args.num_samples)
    if args.scale is None:
        raise InputError("sampling wants --num_samples, or --scale for what training sees there")
    return SCALES[args.scale].num_samples


Sampler = Callable[[argparse.Namespace, Scores, Uids], Counts]
SAMPLINGS: dict[str, tuple[Sampler, tuple[str, ...]]] = {
    "scs": (_scs, ("scale", "num_samples", "repetition_penalty", "sampling_batch_size")),
    "hcs": (_hcs, ("scale", "num_samples", "frequency_limit")),
    "no_cap": (_no_cap, ("scale", "num_samples")),
    "top_fraction": (_top_fraction, ("scale", "fraction", "keep_ties")),
}
"""By the name of `--sampling`: the sampler, and the flags of sampling that it reads."""
