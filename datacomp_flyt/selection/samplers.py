"""The four sampling methods: functions of `Scores` that return a `Subset`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt.arguments import check_integer
from datacomp_flyt.datacomp.scales import SCALES, Scale
from datacomp_flyt.errors import InputError
from datacomp_flyt.samplers import (
    hard_cap_counts,
    no_cap_counts,
    soft_cap_counts,
    top_fraction_counts,
)
from datacomp_flyt.samplers.checks import (
    check_batch_size,
    check_fraction,
    check_num_samples,
    check_repetition_penalty,
)
from datacomp_flyt.selection.sampling import Sampling
from datacomp_flyt.selection.scores import FRACTION_OF, PoolSize, Scores, check_fraction_of
from datacomp_flyt.selection.subset import Subset
from datacomp_flyt.streams import say

Counts = NDArray[np.int32]


def soft_cap_sample(
    scores: Scores,
    *,
    scale: str | None = None,
    num_samples: int | None = None,
    repetition_penalty: float | None = None,
    sampling_batch_size: int | None = None,
    seed: int = 0,
    num_workers: int | None = None,
) -> Subset:
    """Soft Cap Sampling (FLYT, section 3.6 and Algorithm 2).

    Args:
        scores: log probabilities up to a constant.
        scale: a scale of DataComp. It sets `num_samples`, `repetition_penalty` and
            `sampling_batch_size` where they are None, for small and medium to the paper's values,
            for large and xlarge to ours.
        num_samples: N, draws in all.
        repetition_penalty: alpha, subtracted from an example's score each time it is drawn.
        sampling_batch_size: G, draws between penalties. With 1 the penalty applies after each
            draw, which is also the fastest.
        seed: any integer.
        num_workers: threads, which do not change the result; None for one on each core.

    Raises:
        InputError: an argument is missing or out of its range.
    """
    return SOFT_CAP.sample(
        scores,
        scale=scale,
        num_samples=num_samples,
        repetition_penalty=repetition_penalty,
        sampling_batch_size=sampling_batch_size,
        seed=seed,
        num_workers=num_workers,
    )


def hard_cap_sample(
    scores: Scores,
    *,
    frequency_limit: int,
    scale: str | None = None,
    num_samples: int | None = None,
    seed: int = 0,
    num_workers: int | None = None,
) -> Subset:
    """Hard Cap Sampling: with replacement, but no example is drawn more than so many times.

    Args:
        scores: log probabilities up to a constant.
        frequency_limit: the most draws of one example (beta in FLYT, section 4.3 and Figure 3,
            which tries 5 to 25).
        scale: a scale of DataComp, which sets `num_samples` if that is None.
        num_samples: N, draws in all.
        seed: any integer.
        num_workers: see `soft_cap_sample`.

    Raises:
        InputError: an argument is missing or out of its range.
    """
    return HARD_CAP.sample(
        scores,
        scale=scale,
        num_samples=num_samples,
        frequency_limit=frequency_limit,
        seed=seed,
        num_workers=num_workers,
    )


def sample_with_replacement(
    scores: Scores,
    *,
    scale: str | None = None,
    num_samples: int | None = None,
    seed: int = 0,
    num_workers: int | None = None,
) -> Subset:
    """Draw from softmax(scores) with replacement ("No Cap" of FLYT's Figure 3).

    Args:
        scores: log probabilities up to a constant.
        scale: a scale of DataComp, which sets `num_samples` if that is None.
        num_samples: N, draws in all.
        seed: any integer.
        num_workers: see `soft_cap_sample`.

    Raises:
        InputError: an argument is missing or out of its range.
    """
    return NO_CAP.sample(
        scores, scale=scale, num_samples=num_samples, seed=seed, num_workers=num_workers
    )


def top_fraction(
    scores: Scores,
    *,
    fraction: float,
    fraction_of: str | None = None,
    keep_ties: bool = False,
) -> Subset:
    """The examples with the highest scores, once each.

    Args:
        scores: any finite numbers.
        fraction: in (0, 1]; int(fraction * M) examples are kept. If several examples have the
            lowest kept score, those with the smallest uids are kept.
        fraction_of: "available" (the default) if M counts the examples that can be selected, "pool"
            if M counts all rows of the metadata.
        keep_ties: DataComp's rule (`clip_score`) instead: keep every score at least as high as the
            one at rank int(fraction * M), counted from 0. That is one example more, and all that
            share this score.

    Raises:
        InputError: the fraction is out of its range, keeps nothing, or cannot be kept.
    """
    return TOP_FRACTION.sample(
        scores, fraction=fraction, fraction_of=fraction_of, keep_ties=keep_ties
    )


# ------------------------------------------------------------ the entries of the registry


def _num_samples(num_samples: int | None = None, scale: str | None = None) -> int:
    defaults = _defaults(scale)
    if num_samples is not None:
        return check_num_samples(num_samples)
    if defaults is None:
        raise InputError(
            "sampling wants --num_samples, or --scale to draw as many examples as DataComp's "
            "training sees at that scale"
        )
    return defaults.num_samples


def _defaults(scale: str | None) -> Scale | None:
    if scale not in (None, *SCALES):
        raise InputError(f"--scale is {scale!r}, wanted one of {', '.join(SCALES)}")
    return None if scale is None else SCALES[scale]


def _penalty(repetition_penalty: float | None, scale: str | None) -> float:
    defaults = _defaults(scale)
    if repetition_penalty is not None:
        return check_repetition_penalty(repetition_penalty)
    if defaults is None:
        raise InputError("scs wants --repetition_penalty, or --scale for the value of that scale")
    return defaults.repetition_penalty


def _check_soft_cap(
    *,
    scale: str | None = None,
    num_samples: int | None = None,
    repetition_penalty: float | None = None,
    sampling_batch_size: int | None = None,
) -> None:
    _num_samples(num_samples, scale)
    _penalty(repetition_penalty, scale)
    if sampling_batch_size is not None:
        check_batch_size(sampling_batch_size)


def _soft_cap(
    scores: NDArray[np.floating],
    uids: NDArray[np.void],
    *,
    pool_size: PoolSize,
    seed: int,
    num_workers: int,
    scale: str | None = None,
    num_samples: int | None = None,
    repetition_penalty: float | None = None,
    sampling_batch_size: int | None = None,
) -> Counts:
    draws, penalty = _num_samples(num_samples, scale), _penalty(repetition_penalty, scale)
    if sampling_batch_size is None:
        sampling_batch_size = 1 if scale is None else SCALES[scale].sampling_batch_size
        if sampling_batch_size > len(scores):
            say(
                f"--scale {scale}: G = {sampling_batch_size:,} is larger than the number of "
                f"examples, {len(scores):,}, so G = 1 is used: the penalty applies "
                "after each draw"
            )
            sampling_batch_size = 1
    say(f"soft cap sampling: {draws:,} draws, alpha {penalty}, G {sampling_batch_size:,}")
    return soft_cap_counts(
        scores, uids, draws, penalty, seed, sampling_batch_size, num_workers=num_workers
    )


def _check_hard_cap(
    *,
    scale: str | None = None,
    num_samples: int | None = None,
    frequency_limit: int | None = None,
) -> None:
    if frequency_limit is None:
        raise InputError("hcs wants --frequency_limit (the paper tried 5 to 25)")
    check_integer(frequency_limit, "--frequency_limit", least=1)
    _num_samples(num_samples, scale)


def _hard_cap(
    scores: NDArray[np.floating],
    uids: NDArray[np.void],
    *,
    pool_size: PoolSize,
    seed: int,
    num_workers: int,
    frequency_limit: int,
    scale: str | None = None,
    num_samples: int | None = None,
) -> Counts:
    draws = _num_samples(num_samples, scale)
    say(f"hard cap sampling: {draws:,} draws, at most {frequency_limit:,} of each example")
    return hard_cap_counts(scores, uids, draws, frequency_limit, seed, num_workers=num_workers)


def _no_cap(
    scores: NDArray[np.floating],
    uids: NDArray[np.void],
    *,
    pool_size: PoolSize,
    seed: int,
    num_workers: int,
    scale: str | None = None,
    num_samples: int | None = None,
) -> Counts:
    draws = _num_samples(num_samples, scale)
    say(f"sampling with replacement: {draws:,} draws")
    return no_cap_counts(scores, uids, draws, seed, num_workers=num_workers)


def _check_top_fraction(
    *,
    fraction: float | None = None,
    fraction_of: str | None = None,
    scale: str | None = None,
    **_: object,
) -> None:
    if fraction is None:
        raise InputError("top_fraction wants --fraction (the paper's is 0.2)")
    check_fraction(fraction)
    check_fraction_of(fraction_of)
    _defaults(scale)


def _top_fraction(
    scores: NDArray[np.floating],
    uids: NDArray[np.void],
    *,
    pool_size: PoolSize,
    seed: int,
    num_workers: int,
    fraction: float,
    fraction_of: str | None = None,
    keep_ties: bool = False,
    scale: str | None = None,
) -> Counts:
    base = pool_size.base("--fraction", fraction, fraction_of, len(scores))
    return top_fraction_counts(scores, uids, fraction, keep_ties, base)


_SCALE: dict[str, dict[str, Any]] = {
    "scale": {
        "choices": list(SCALES),
        "help": "sets --num_samples to the number of samples that a training of this scale sees, "
        "and for scs also --repetition_penalty and --sampling_batch_size, for small and medium to "
        "the paper's values",
    },
}
_DRAWS: dict[str, dict[str, Any]] = {
    **_SCALE,
    "num_samples": {
        "type": int,
        "help": "draws in all, so entries of the subset (scs, hcs, no_cap)",
    },
}
SOFT_CAP = Sampling(
    "scs",
    "Soft Cap Sampling",
    _soft_cap,
    {
        **_DRAWS,
        "repetition_penalty": {
            "type": float,
            "help": "scs: alpha, subtracted from an example's score each time it is drawn",
        },
        "sampling_batch_size": {
            "type": int,
            "help": "scs: G, draws between penalties (default: 1, a penalty after each draw, which "
            "is the fastest; with --scale, the value of that scale)",
        },
    },
    _check_soft_cap,
)
HARD_CAP = Sampling(
    "hcs",
    "Hard Cap Sampling",
    _hard_cap,
    {
        **_DRAWS,
        "frequency_limit": {"type": int, "help": "hcs: the most draws of one example"},
    },
    _check_hard_cap,
)
NO_CAP = Sampling("no_cap", "sampling with replacement", _no_cap, _DRAWS, _num_samples)
TOP_FRACTION = Sampling(
    "top_fraction",
    "the highest scores",
    _top_fraction,
    {
        **_SCALE,
        "fraction": {
            "type": float,
            "help": "share of the pool to keep, highest scores first, for --sampling top_fraction",
        },
        "fraction_of": {
            "choices": FRACTION_OF,
            "help": "the examples that --fraction and --first_fraction are shares of: those that "
            "can be selected, which have a score and, with --available or --shards_dir, an image "
            "(available, the default), or all rows of --metadata_dir (pool)",
        },
        "keep_ties": {
            "action": "store_true",
            "help": "top_fraction: DataComp's rule (clip_score): keep every score at least as high "
            "as the one at rank int(fraction * M), counted from 0",
        },
    },
    _check_top_fraction,
)
