"""How clean each pair of the pool is, by the round's own model or models.

    python -m datacomp_flyt.self_filtering.scores --score alignment \\
        --metadata_dir round_0/metadata --out round_0/scores

writes a table with the column `self_filtering`, more is better, and for two models also what the
one that has seen a pair says of it, and the one that has not.
"""

from __future__ import annotations

from datacomp_flyt.exits import Parser, run_main

if __name__ == "__main__":  # all else is imported where Ctrl-C has a handler
    run_main("datacomp_flyt.self_filtering.scores")

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from datacomp_flyt import cli
from datacomp_flyt.errors import InputError
from datacomp_flyt.files.output_files import atomic_write, check_save_path
from datacomp_flyt.mixing.columns import Columns
from datacomp_flyt.pool.pool import read_pool
from datacomp_flyt.pool.subset import read_subset
from datacomp_flyt.pool.uid_search import find_uids
from datacomp_flyt.pool.uids import encode_uids
from datacomp_flyt.self_filtering.mix import COLUMN, in_first_half
from datacomp_flyt.self_filtering.settings import SCORES, TWO_MODELS
from datacomp_flyt.streams import say
from datacomp_flyt.threads import blocks, default_num_workers

UNSEEN, SEEN = f"{COLUMN}_unseen", f"{COLUMN}_seen"
"""Columns beside it: by the model that has not seen a pair, and by the one that has (else NaN)."""

_ROWS = 1 << 20  # of a row group

Floats = NDArray[np.float64]


class CrossFitted(NamedTuple):
    """Scores of a pool [M] by two models, standardised over the pool.

    Attributes:
        score: to select by.
        unseen: by the model that has not seen the pair; the mean of both where neither has.
        seen: by the one that has; NaN where neither has.
    """

    score: Floats
    unseen: Floats
    seen: Floats


def cross_fitted(
    first: NDArray[np.floating],
    second: NDArray[np.floating],
    in_first: NDArray[np.bool_],
    trained_on: NDArray[np.bool_],
    memorisation: bool = False,
) -> CrossFitted:
    """Each pair by the model that has not trained on it, so that no memory is in its score.

    Each model's scores are standardised over the pool first: else pairs of one half would win
    because the other half's model gives higher scores to all.

    Args:
        first, second: scores [M] by model `a` and `b`; NaN for none.
        in_first: the pairs that `a` may train on [M]; `b` the others.
        trained_on: the pairs that have been in a mix [M].
        memorisation: take off what training on a pair has added to its score beyond the mean.
            Pairs that neither model has seen lose nothing.
    """
    of_first, of_second = _standardized(first), _standardized(second)
    both = (of_first + of_second) / 2
    unseen = np.where(trained_on, np.where(in_first, of_second, of_first), both)
    seen = np.where(trained_on, np.where(in_first, of_first, of_second), np.nan)
    score = unseen
    if memorisation:
        gained = seen - unseen
        known = np.isfinite(gained)
        usual = float(gained[known].mean()) if known.any() else 0.0
        score = unseen - np.where(known, gained - usual, 0.0)
    return CrossFitted(score, unseen, seen)


def _standardized(scores: NDArray[np.floating]) -> Floats:
    values = scores.astype(np.float64)
    known = values[np.isfinite(values)]
    if not len(known):
        raise InputError("a model gives no pair a score: its embeddings are not finite")
    spread = float(known.std())
    standardized: Floats = (values - known.mean()) / (spread or 1.0)
    return standardized


def write_scores(folder: Path, uids: NDArray[np.void], columns: dict[str, Floats]) -> None:
    """One table of scores, float32, in the order of the pool."""
    path = check_save_path(folder / COLUMN / "all.parquet", "--out")
    names = [("uid", pa.large_string()), *((name, pa.float32()) for name in columns)]
    with atomic_write(path) as file, pq.ParquetWriter(file, pa.schema(names)) as writer:
        for part in blocks(len(uids), _ROWS):
            values = [pa.array(column[part], pa.float32()) for column in columns.values()]
            arrays = [encode_uids(uids[part]), *values]
            writer.write_table(pa.Table.from_arrays(arrays, schema=pa.schema(names)))


def run(args: argparse.Namespace) -> None:
    """Write the table.

    Raises:
        InputError: something given is wrong.
    """
    if args.score == "info_nce":
        if args.temperature is None and args.checkpoint is None:
            raise InputError("--score info_nce wants --checkpoint, or --temperature")
        from datacomp_flyt.clip.models import temperature_of

        temperature = args.temperature or temperature_of(args.checkpoint, "--checkpoint")
        say(f"temperature {temperature:.5f}")
        cli.main(
            [
                *("score", "--scorer", "neg_clip_loss", "--arch", "model", "--column", args.column),
                *("--temperature", repr(temperature), "--batch_size", str(args.batch_size)),
                *("--num_partitions", str(args.num_partitions), "--seed", str(args.seed)),
                *("--metadata_dir", args.metadata_dir, "--scores_dir", str(args.out)),
            ]
        )
        return
    workers = default_num_workers()
    pool = read_pool(args.metadata_dir, workers)
    columns = Columns(pool, args.metadata_dir, None, workers, True, drop_nonfinite=True)
    models = ("a", "b") if args.score in TWO_MODELS else ("model",)
    found = list(columns.read(columns.find([f"clip_{m}_similarity_score" for m in models])))
    uids = pool.uids
    if args.score == "alignment":
        write_scores(args.out, uids, {COLUMN: found[0].astype(np.float64)})
        return
    if not args.mixes:
        raise InputError(f"--score {args.score} wants --mixes, what its models were trained on")
    trained_on = np.zeros(len(pool), np.bool_)
    for path in args.mixes:
        places = find_uids(pool.high, pool.low, read_subset(path)[0])
        # round 0's mix also has pairs that cannot be embedded, and have no score
        trained_on[places[places >= 0]] = True
    made = cross_fitted(
        found[0], found[1], in_first_half(uids, args.seed), trained_on,
        args.score == "memorisation",
    )  # fmt: skip
    write_scores(args.out, uids, {COLUMN: made.score, UNSEEN: made.unseen, SEEN: made.seen})


def main() -> None:
    """The command above."""
    parser = Parser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--score", choices=list(SCORES), required=True)
    add("--column", default=COLUMN, help="info_nce: another name for it")
    add("--metadata_dir", required=True, help="of `datacomp-flyt embed` with the round's models")
    add("--mixes", nargs="+", type=Path, help="that the two models have been trained on")
    add("--checkpoint", help="info_nce: the model, for its temperature")
    add("--temperature", type=float, help="info_nce: another one")
    add("--batch_size", type=int, default=4096, help="info_nce: pairs of a batch")
    add("--num_partitions", type=int, default=3, help="info_nce: K")
    add("--seed", type=int, default=0)
    add("--out", type=Path, required=True, help="folder of score tables")
    run(parser.parse_args())
