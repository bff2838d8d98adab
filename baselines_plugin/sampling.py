"""From the flags to a sampler."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt.datacomp.scales import SCALES
from datacomp_flyt.errors import InputError
from datacomp_flyt.samplers import (
    hard_cap_counts,
    no_cap_counts,
    soft_cap_counts,
    top_fraction_counts,
)
from datacomp_flyt.streams import say

AVAILABLE, POOL = FRACTION_OF = ("available", "pool")


@dataclass(frozen=True)
class PoolSize:
    """The numbers of examples that a fraction may be taken of.

    Attributes:
        listed: the number of rows of the metadata.
        scored: the number of rows that have a score and, if images are known, an image. A method
            that filters before sampling has fewer scores than this.
        images_known: whether rows without an image have been left out.
        fraction_of: the value of `--fraction_of`, which selects one of the two numbers.
    """

    listed: int
    scored: int
    images_known: bool
    fraction_of: str | None

    def base(self, flag: str, fraction: float, num_left: int) -> int:
        """Return the number that a fraction is taken of, and print it.

        Args:
            flag: the flag of the fraction.
            fraction: in (0, 1].
            num_left: the number of examples that can still be kept.

        Raises:
            InputError: the fraction is out of its range, or larger than the share that can be kept.
        """
        if not 0 < fraction <= 1:
            raise InputError(f"{flag} is {fraction}, wanted more than 0 and at most 1")
        have = "have an image and a score" if self.images_known else "have a score"
        if self.fraction_of != POOL:
            base = self.scored
            text = f"the {base:,} examples that {have} (the pool lists {self.listed:,})"
        else:
            base = self.listed
            text = f"the {base:,} examples that the pool lists, of which {self.scored:,} {have}"
        if (number := int(fraction * base)) > num_left:
            ways = [f"lower {flag}"]
            ways += ["raise --first_fraction"] * (num_left < self.scored)
            ways += ["leave out --fraction_of pool"] * (self.fraction_of == POOL)
            raise InputError(
                f"{flag} {fraction} of {text} is {number:,} and {num_left:,} can be kept: "
                + " or ".join(ways)
            )
        say(f"{flag}: top {100 * fraction:.6g}% of {text}")
        return base


Counts = NDArray[np.int32]
Sampler = Callable[[NDArray[np.floating], NDArray[np.void], PoolSize], Counts]
"""A function of scores [M], uids [M] and the pool's size that returns draw counts [M]."""


def _scs(args: argparse.Namespace) -> Sampler:
    scale = SCALES.get(args.scale)
    penalty, num_samples = args.repetition_penalty, _num_samples(args)
    if penalty is None:
        if scale is None:
            raise InputError("scs wants --repetition_penalty, or --scale for the paper's")
        penalty = scale.repetition_penalty

    def sample(scores: NDArray[np.floating], uids: NDArray[np.void], size: PoolSize) -> Counts:
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
    return lambda scores, uids, size: top_fraction_counts(
        scores,
        uids,
        args.fraction,
        args.keep_ties,
        size.base("--fraction", args.fraction, len(scores)),
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
    "top_fraction": (_top_fraction, ("scale", "fraction", "fraction_of", "keep_ties")),
}
"""By the name of `--sampling`: what makes the sampler of the flags, and the flags that it reads."""
