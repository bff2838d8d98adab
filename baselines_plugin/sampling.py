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
from datacomp_flyt.streams import say

Counts = NDArray[np.int32]
Sampler = Callable[[NDArray[np.floating], NDArray[np.void], int], Counts]
"""From scores [M], uids [M] and the size of the pool to how often each example is drawn [M].

The pool is larger than M where a method cuts some of it before sampling."""


def _scs(args: argparse.Namespace) -> Sampler:
    scale = SCALES.get(args.scale)
    penalty, num_samples = args.repetition_penalty, _num_samples(args)
    if penalty is None:
        if scale is None:
            raise InputError("scs wants --repetition_penalty, or --scale for the paper's")
        penalty = scale.repetition_penalty

    def sample(scores: NDArray[np.floating], uids: NDArray[np.void], pool_size: int) -> Counts:
        batch_size = args.sampling_batch_size
        if batch_size is None:
            batch_size = scale.sampling_batch_size if scale else 1
            if batch_size > len(scores):
                say(
                    f"--scale {args.scale} samples {batch_size:,} different examples at once and "
                    f"there are {len(scores):,}: sampling one at a time, which that approximates"
                )
                batch_size = 1
        say(f"soft cap sampling: {num_samples:,} draws, alpha {penalty}, G {batch_size:,}")
        return soft_cap_counts(
            scores, uids, num_samples, penalty, args.seed, batch_size, num_workers=args.num_workers
        )

    return sample


def _hcs(args: argparse.Namespace) -> Sampler:
    if args.frequency_limit is None:
        raise InputError("hcs wants --frequency_limit (the paper tried 5 to 25)")
    num_samples = _num_samples(args)
    return lambda scores, uids, _: hard_cap_counts(
        scores, uids, num_samples, args.frequency_limit, args.seed, num_workers=args.num_workers
    )


def _no_cap(args: argparse.Namespace) -> Sampler:
    num_samples = _num_samples(args)
    return lambda scores, uids, _: no_cap_counts(
        scores, uids, num_samples, args.seed, num_workers=args.num_workers
    )


def _top_fraction(args: argparse.Namespace) -> Sampler:
    if args.fraction is None:
        raise InputError("top_fraction wants --fraction (the paper's is 0.2)")
    if not 0 < args.fraction <= 1:
        raise InputError(f"--fraction is {args.fraction}, wanted more than 0 and at most 1")
    return lambda scores, uids, pool_size: top_fraction_counts(
        scores, uids, args.fraction, args.keep_ties, pool_size
    )


def _num_samples(args: argparse.Namespace) -> int:
    if args.num_samples is not None:
        return int(args.num_samples)
    if args.scale is None:
        raise InputError("sampling wants --num_samples, or --scale for what training sees there")
    return SCALES[args.scale].num_samples


SAMPLINGS: dict[str, tuple[Callable[[argparse.Namespace], Sampler], tuple[str, ...]]] = {
    "scs": (_scs, ("scale", "num_samples", "repetition_penalty", "sampling_batch_size")),
    "hcs": (_hcs, ("scale", "num_samples", "frequency_limit")),
    "no_cap": (_no_cap, ("scale", "num_samples")),
    "top_fraction": (_top_fraction, ("scale", "fraction", "keep_ties")),
}
"""By the name of `--sampling`: what makes the sampler of the flags, and the flags that it reads."""
