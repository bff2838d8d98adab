"""The next mix: confident pairs, and a random share of the whole pool.

    python -m datacomp_flyt.self_filtering.mix --metadata_dir round_0/metadata \\
        --scores_dir round_0/scores --draws 25600 --round 1 --out round_1

Chance is named by (seed, uid, round), so neither the order nor the number of files matters.
"""

from __future__ import annotations

from datacomp_flyt.exits import Parser, run_main

if __name__ == "__main__":  # all else is imported where Ctrl-C has a handler
    run_main("datacomp_flyt.self_filtering.mix")

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt.errors import InputError
from datacomp_flyt.files.output_files import check_save_path
from datacomp_flyt.mixing.columns import Columns
from datacomp_flyt.pool.outputs import Output, check_outputs
from datacomp_flyt.pool.pool import Pool, read_pool
from datacomp_flyt.pool.subset import describe_counts, read_subset, write_subset
from datacomp_flyt.pool.uid_randomness import random_bits, stream_keys
from datacomp_flyt.pool.uid_search import find_uids
from datacomp_flyt.pool.uids import format_uid
from datacomp_flyt.samplers.top_fraction import top_fraction_counts
from datacomp_flyt.streams import say
from datacomp_flyt.threads import default_num_workers

COLUMN = "self_filtering"
"""The score column that rounds make."""

MIX, CONFIDENT = "mix.npy", "confident.npy"

# Samplers take their draws from the plain seed's streams, and reports their sample from another.
_SHARES, _HALVES = 0x73686172657300, 0x68616C76657300
_CONFIDENT, _RANDOM = 0, 1  # which of a round's two draws

Counts = NDArray[np.int32]


class Mix(NamedTuple):
    """How often each example of a pool is drawn [M], by the part of the mix that draws it."""

    confident: Counts
    random: Counts

    @property
    def counts(self) -> Counts:
        """How often in all [M]."""
        return self.confident + self.random


def mix_counts(
    scores: NDArray[np.floating],
    uids: NDArray[np.void],
    draws: int,
    confident_fraction: float,
    random_share: float,
    number: int,
    seed: int,
) -> Mix:
    """Draws of a round's mix.

    round(random_share draws) go to the whole pool and the others to the top fraction by score;
    each part is spread evenly over its examples, with the remainder on some of them by chance.

    Args:
        scores: floats [M]; an example with NaN is never confident.
        uids: `u8,u8` array [M], no uid twice.
        draws: of the mix.
        confident_fraction: of all M examples.
        random_share: of the draws.
        number: of the round; each has chance of its own.
        seed: any integer.

    Raises:
        InputError: the top fraction keeps nothing, or more than there are scores.
    """
    at_random = round(random_share * draws)
    confident = np.zeros(len(uids), np.int32)
    if draws > at_random:
        scored = np.flatnonzero(~np.isnan(scores))
        kept = top_fraction_counts(
            scores[scored], uids[scored], confident_fraction, pool_size=len(uids)
        )
        places = scored[kept > 0]
        confident[places] = spread(draws - at_random, uids[places], number, seed, _CONFIDENT)
    return Mix(confident, spread(at_random, uids, number, seed, _RANDOM))


def spread(
    draws: int, uids: NDArray[np.void], number: int, seed: int, part: int = _RANDOM
) -> Counts:
    """Draws as even as they go: the remainder of draws / M on those of the lowest random bits.

    Args:
        draws: 0 or more.
        uids: `u8,u8` array [M], M >= 1.
        number: of the round.
        seed: any integer.
        part: of the mix: two parts of a round have chance of their own.

    Returns:
        int32 array [M] that sums to `draws`.
    """
    whole, rest = divmod(draws, len(uids))
    counts = np.full(len(uids), whole, np.int32)
    if not rest:
        return counts
    keys = stream_keys(np.ascontiguousarray(uids), seed ^ _SHARES)
    bits = random_bits(keys, 2 * number + part)
    last = np.partition(bits, rest - 1)[rest - 1]
    counts[bits < last] += 1
    tied = np.flatnonzero(bits == last)
    order = np.lexsort((uids["f1"][tied], uids["f0"][tied]))
    left = rest - np.count_nonzero(bits < last)
    counts[tied[order[:left]]] += 1
    return counts


def in_first_half(uids: NDArray[np.void], seed: int) -> NDArray[np.bool_]:
    """Whether model `a` may train on each example [M]; model `b` gets the others.

    The same in every round, so that what one of two models has seen the other never has, though
    its weights go on from round to round.
    """
    bits = random_bits(stream_keys(np.ascontiguousarray(uids), seed ^ _HALVES), 0)
    return bits < np.uint64(1 << 63)


def write_halves(
    folder: Path, uids: NDArray[np.void], counts: NDArray[np.integer], seed: int
) -> None:
    """`mix_a.npy` and `mix_b.npy` of a mix.

    Raises:
        InputError: a half is empty.
    """
    first = in_first_half(uids, seed)
    for name, half in (("a", first), ("b", ~first)):
        if not counts[half].any():
            raise InputError(
                f"half {name} of {folder / MIX} has no example: two models want more draws"
            )
        write_subset(folder / f"mix_{name}.npy", uids[half], counts[half])


def counts_in(pool: Pool, path: Path) -> NDArray[np.int64]:
    """How often a subset draws each example of a pool [M].

    Raises:
        InputError: it draws others, or is no subset.
    """
    uids, repeats = read_subset(path)
    places = find_uids(pool.high, pool.low, uids)
    if (places < 0).any():
        stranger = format_uid(uids[int((places < 0).argmax())])
        raise InputError(
            f"{path} has {np.count_nonzero(places < 0):,} uids that are not in the pool (the first "
            f"is {stranger}): give the pool that it was made from"
        )
    counts = np.zeros(len(pool), np.int64)
    counts[places] = repeats
    return counts


def run(args: argparse.Namespace) -> None:
    """Write `confident.npy`, `mix.npy` and, if asked for, the halves.

    Raises:
        InputError: something given is wrong.
    """
    workers = default_num_workers()
    check_save_path(args.out / MIX, "--out")
    check_outputs([Output("--out", args.out, (MIX, CONFIDENT))], vars(args))
    pool = read_pool(str(args.metadata_dir), workers)
    uids = pool.uids
    if args.selected is not None:
        chosen = counts_in(pool, args.selected).astype(np.int32)
        rest = args.draws - int(chosen.sum())
        if rest < 0:
            raise InputError(f"{args.selected} has more draws than --draws {args.draws}: raise it")
        mix = Mix(chosen, spread(rest, uids, args.round, args.seed))
    else:
        columns = Columns(
            pool, str(args.metadata_dir), args.scores_dir, workers, True, drop_nonfinite=True
        )
        scores = next(columns.read(columns.find([args.column])))
        mix = mix_counts(
            scores, uids, args.draws, args.confident_fraction, args.random_share,
            args.round, args.seed,
        )  # fmt: skip
    if mix.confident.any():
        write_subset(args.out / CONFIDENT, uids, mix.confident)
    if args.halves:
        write_halves(args.out, uids, mix.counts, args.seed)
    write_subset(args.out / MIX, uids, mix.counts)
    say(f"saved {args.out / MIX}")
    for fact in describe_counts(mix.counts[mix.counts > 0]):
        say(f"  {fact}")


def main() -> None:
    """The command above."""
    parser = Parser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--metadata_dir", type=Path, required=True)
    add("--scores_dir", help="score tables; without, --column is one of the metadata")
    add("--column", default=COLUMN)
    add("--selected", type=Path, help="a subset that is the confident part, instead of scores")
    add("--draws", type=int, required=True)
    add("--confident_fraction", type=float, default=0.3)
    add("--random_share", type=float, default=0.2)
    add("--round", type=int, required=True, help="that the mix is for")
    add("--seed", type=int, default=0)
    add("--halves", action="store_true", help="also of two models")
    add("--out", type=Path, required=True, help="folder of the round")
    run(parser.parse_args())
