"""Make the subset of the next round: confident pairs, and a random share of the whole pool.

    python -m datacomp_flyt.self_filtering.next_subset --metadata_dir round_0/metadata \\
        --scores_dir round_0/scores --draws 25600 --round 1 --out round_1

Random bits depend on (seed, uid, round) alone, so the order and the number of files do not matter.
"""

from __future__ import annotations

from datacomp_flyt.exits import Parser, run_main

if __name__ == "__main__":  # all else is imported where Ctrl-C has a handler
    run_main("datacomp_flyt.self_filtering.next_subset")

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
from datacomp_flyt.self_filtering.settings import CONFIDENT_FRACTION, RANDOM_SHARE
from datacomp_flyt.streams import say
from datacomp_flyt.threads import default_num_workers

COLUMN = "self_filtering"
"""The score column that rounds make."""

SUBSET, CONFIDENT = "subset.npy", "confident.npy"
"""Files in a round's folder: the training subset, and the part of it selected by score."""

# Samplers use the random streams of the plain seed; these and reports have streams of their own.
_SHARES, _HALVES = 0x73686172657300, 0x68616C76657300
_CONFIDENT, _RANDOM = 0, 1  # the two parts of a round's subset

Counts = NDArray[np.int32]


class SubsetCounts(NamedTuple):
    """Draw counts of each example of a pool [M], by the part of the subset that draws it."""

    confident: Counts
    random: Counts

    @property
    def total(self) -> Counts:
        """The draw counts of both parts together [M]."""
        return self.confident + self.random


def subset_counts(
    scores: NDArray[np.floating],
    uids: NDArray[np.void],
    draws: int,
    confident_fraction: float,
    random_share: float,
    round_index: int,
    seed: int,
) -> SubsetCounts:
    """Return the draw counts of a round's subset.

    round(random_share * draws) draws go to the whole pool, and the others to the top fraction by
    score. Each part is spread evenly over its examples; random ones among them get the remainder.

    Args:
        scores: floats [M]; an example with NaN is never confident.
        uids: `u8,u8` array [M] of distinct uids.
        draws: the size of the subset.
        confident_fraction: a fraction of all M examples.
        random_share: a share of the draws.
        round_index: the round that trains on the subset; each has random bits of its own.
        seed: any integer.

    Raises:
        InputError: the top fraction keeps nothing, or more examples than have scores.
    """
    random_draws = round(random_share * draws)
    confident = np.zeros(len(uids), np.int32)
    if draws > random_draws:
        scored = np.flatnonzero(~np.isnan(scores))
        kept = top_fraction_counts(
            scores[scored], uids[scored], confident_fraction, pool_size=len(uids)
        )
        rows = scored[kept > 0]
        confident[rows] = spread(draws - random_draws, uids[rows], round_index, seed, _CONFIDENT)
    return SubsetCounts(confident, spread(random_draws, uids, round_index, seed, _RANDOM))


def spread(
    draws: int, uids: NDArray[np.void], round_index: int, seed: int, part: int = _RANDOM
) -> Counts:
    """Spread draws evenly over examples; those of the lowest random bits get the remainder.

    Args:
        draws: 0 or more.
        uids: `u8,u8` array [M], M >= 1.
        round_index: the round that trains on the subset.
        seed: any integer.
        part: the part of the subset; two parts of a round have random bits of their own.

    Returns:
        int32 array [M] that sums to `draws`.
    """
    each, remainder = divmod(draws, len(uids))
    counts = np.full(len(uids), each, np.int32)
    if not remainder:
        return counts
    keys = stream_keys(np.ascontiguousarray(uids), seed ^ _SHARES)
    bits = random_bits(keys, 2 * round_index + part)
    last = np.partition(bits, remainder - 1)[remainder - 1]
    counts[bits < last] += 1
    tied = np.flatnonzero(bits == last)
    order = np.lexsort((uids["f1"][tied], uids["f0"][tied]))
    left = remainder - np.count_nonzero(bits < last)
    counts[tied[order[:left]]] += 1
    return counts


def in_first_half(uids: NDArray[np.void], seed: int) -> NDArray[np.bool_]:
    """Return whether model `a` may train on each example [M]; model `b` gets the others.

    The halves are the same in every round, so that a model never sees a pair of the other one's
    half, although its weights may be kept from round to round.
    """
    bits = random_bits(stream_keys(np.ascontiguousarray(uids), seed ^ _HALVES), 0)
    return bits < np.uint64(1 << 63)


def half_file(model: str) -> str:
    """Return the name of the file with the half of a subset that model `a` or `b` trains on."""
    return f"subset_{model}.npy"


def write_halves(
    folder: Path, uids: NDArray[np.void], counts: NDArray[np.integer], seed: int
) -> None:
    """Write the two halves of a subset, `subset_a.npy` and `subset_b.npy`.

    Raises:
        InputError: a half is empty.
    """
    first = in_first_half(uids, seed)
    for model, half in (("a", first), ("b", ~first)):
        if not counts[half].any():
            raise InputError(
                f"half {model} of {folder / SUBSET} has no example: two models want more draws"
            )
        write_subset(folder / half_file(model), uids[half], counts[half])


def counts_in(pool: Pool, path: Path) -> NDArray[np.int64]:
    """Return how often a subset draws each example of a pool [M].

    Raises:
        InputError: the file is no subset, or draws examples that are not in the pool.
    """
    uids, repeats = read_subset(path)
    rows = find_uids(pool.high, pool.low, uids)
    if (rows < 0).any():
        unknown = format_uid(uids[int((rows < 0).argmax())])
        raise InputError(
            f"{path} has {np.count_nonzero(rows < 0):,} uids that are not in the pool (the first "
            f"is {unknown}): give the pool that it was made from"
        )
    counts = np.zeros(len(pool), np.int64)
    counts[rows] = repeats
    return counts


def write_next_subset(
    *,
    metadata_dir: Path,
    out: Path,
    round_index: int,
    draws: int,
    scores_dir: Path | None = None,
    column: str = COLUMN,
    selected: Path | None = None,
    confident_fraction: float = CONFIDENT_FRACTION,
    random_share: float = RANDOM_SHARE,
    seed: int = 0,
    halves: bool = False,
) -> None:
    """Write `OUT/subset.npy`, its confident part `OUT/confident.npy`, and the halves if wanted.

    Args:
        metadata_dir: the pool.
        out: the folder of the round that trains on the subset.
        round_index, draws, confident_fraction, random_share, seed: see `subset_counts`.
        scores_dir: score tables; None where `column` is one of the metadata.
        column: the score column.
        selected: a subset that is the confident part, instead of the top fraction by score.
        halves: also write the halves that two models train on.

    Raises:
        InputError: see `subset_counts`, `write_halves` and `counts_in`; `selected` has more draws
            than `draws`; or a file is missing or wrong.
    """
    workers = default_num_workers()
    check_save_path(out / SUBSET, "--out")
    inputs = {"metadata_dir": metadata_dir, "scores_dir": scores_dir, "selected": selected}
    check_outputs([Output("--out", out, (SUBSET, CONFIDENT))], inputs)
    pool = read_pool(str(metadata_dir), workers)
    uids = pool.uids
    if selected is not None:
        chosen = counts_in(pool, selected).astype(np.int32)
        rest = draws - int(chosen.sum())
        if rest < 0:
            raise InputError(f"{selected} has more draws than --draws {draws}: raise it")
        counts = SubsetCounts(chosen, spread(rest, uids, round_index, seed))
    else:
        tables = None if scores_dir is None else str(scores_dir)
        columns = Columns(pool, str(metadata_dir), tables, workers, True, drop_nonfinite=True)
        scores = next(columns.read(columns.find([column])))
        counts = subset_counts(
            scores, uids, draws, confident_fraction, random_share, round_index, seed
        )
    if counts.confident.any():
        write_subset(out / CONFIDENT, uids, counts.confident)
    if halves:
        write_halves(out, uids, counts.total, seed)
    write_subset(out / SUBSET, uids, counts.total)
    say(f"saved {out / SUBSET}")
    for fact in describe_counts(counts.total[counts.total > 0]):
        say(f"  {fact}")


def main() -> None:
    """Parse the flags and call `write_next_subset`."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--metadata_dir", type=Path, required=True, help="the pool")
    add("--scores_dir", type=Path, help="score tables; without, --column is one of the metadata")
    add("--column", default=COLUMN, help="score column")
    add("--selected", type=Path, help="a subset that is the confident part, instead of scores")
    add("--draws", type=int, required=True, help="size of the subset")
    add("--confident_fraction", type=float, default=CONFIDENT_FRACTION, help="of the pool")
    add("--random_share", type=float, default=RANDOM_SHARE, help="of the draws")
    add("--round", type=int, required=True, dest="round_index", help="round that trains on it")
    add("--seed", type=int, default=0, help="seed of remainders and halves")
    add("--halves", action="store_true", help="also write the halves that two models train on")
    add("--out", type=Path, required=True, help="folder of the round")
    write_next_subset(**vars(parser.parse_args()))
