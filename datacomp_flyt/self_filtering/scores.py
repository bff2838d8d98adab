"""Score a pool by a round's own model or models.

    python -m datacomp_flyt.self_filtering.scores --score alignment \\
        --metadata_dir round_0/metadata --out round_0/scores

writes a table with the column `self_filtering`, larger for cleaner pairs. With two models, it has
two more columns: the score by the model that has seen a pair, and by the one that has not.
"""

from __future__ import annotations

from datacomp_flyt.exits import Parser, run_main

if __name__ == "__main__":  # all else is imported where Ctrl-C has a handler
    run_main("datacomp_flyt.self_filtering.scores")

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from datacomp_flyt.errors import InputError
from datacomp_flyt.files.output_files import atomic_write, check_save_path
from datacomp_flyt.mixing.columns import Columns
from datacomp_flyt.pool.pool import read_pool
from datacomp_flyt.pool.subset import read_subset
from datacomp_flyt.pool.uid_search import find_uids
from datacomp_flyt.pool.uids import encode_uids
from datacomp_flyt.self_filtering.next_subset import COLUMN, in_first_half
from datacomp_flyt.self_filtering.settings import TWO_MODELS
from datacomp_flyt.threads import blocks, default_num_workers

UNSEEN, SEEN = f"{COLUMN}_unseen", f"{COLUMN}_seen"
"""Further columns: by the model that has not seen a pair, and by the one that has (else NaN)."""

_ROW_GROUP = 1 << 20

Floats = NDArray[np.float64]


class CrossFitted(NamedTuple):
    """Scores of a pool [M] by two models, standardised over the pool.

    Attributes:
        score: the score to select by.
        unseen: the score by the model that has not seen the pair; the mean of both models' scores
            where neither has.
        seen: the score by the model that has seen the pair; NaN where neither has.
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
    """Score each pair by the model that has not trained on it, so that memory adds nothing.

    Each model's scores are standardised over the pool first. Otherwise the pairs of one half would
    win because the other half's model gives higher scores to all.

    Args:
        first, second: scores [M] by model `a` and `b`; NaN for none.
        in_first: whether `a` may train on a pair [M]; `b` may train on the others.
        trained_on: whether a pair has been in a training subset [M].
        memorisation: subtract the gain of a pair's score by training on it, beyond the mean gain.
            Pairs that neither model has seen lose nothing.

    Raises:
        InputError: a model gives no pair a finite score.
    """
    by_first, by_second = _standardized(first), _standardized(second)
    mean = (by_first + by_second) / 2
    unseen = np.where(trained_on, np.where(in_first, by_second, by_first), mean)
    seen = np.where(trained_on, np.where(in_first, by_first, by_second), np.nan)
    score = unseen
    if memorisation:
        gain = seen - unseen
        known = np.isfinite(gain)
        usual = float(gain[known].mean()) if known.any() else 0.0
        score = unseen - np.where(known, gain - usual, 0.0)
    return CrossFitted(score, unseen, seen)


def _standardized(scores: NDArray[np.floating]) -> Floats:
    values = scores.astype(np.float64)
    known = values[np.isfinite(values)]
    if not len(known):
        raise InputError("a model gives no pair a score: its embeddings are not finite")
    deviation = float(known.std())
    standardized: Floats = (values - known.mean()) / (deviation or 1.0)
    return standardized


def write_scores(folder: Path, uids: NDArray[np.void], columns: dict[str, Floats]) -> None:
    """Write one table of scores, float32, in the order of the pool.

    Args:
        folder: the folder of score tables.
        uids: `u8,u8` array [M].
        columns: scores [M] by name.
    """
    path = check_save_path(folder / COLUMN / "all.parquet", "--out")
    names = [("uid", pa.large_string()), *((name, pa.float32()) for name in columns)]
    with atomic_write(path) as file, pq.ParquetWriter(file, pa.schema(names)) as writer:
        for rows in blocks(len(uids), _ROW_GROUP):
            values = [pa.array(column[rows], pa.float32()) for column in columns.values()]
            arrays = [encode_uids(uids[rows]), *values]
            writer.write_table(pa.Table.from_arrays(arrays, schema=pa.schema(names)))


def score_round(
    *, score: str, metadata_dir: str, out: Path, subsets: Sequence[Path] = (), seed: int = 0
) -> None:
    """Write `OUT/self_filtering/all.parquet`, the scores of a pool by a round's models.

    Args:
        score: `alignment`, `cross_fitted` or `memorisation`, see `settings.SCORES`.
        metadata_dir: the pool as `datacomp-flyt embed` writes it, with encoders called `model`, or
            `a` and `b`.
        out: the folder of score tables.
        subsets: the subsets that the two models were trained on.
        seed: the run's seed, which decides the halves.

    Raises:
        InputError: `subsets` are missing, a model gives no finite score, or a file is wrong.
    """
    workers = default_num_workers()
    pool = read_pool(metadata_dir, workers)
    columns = Columns(pool, metadata_dir, None, workers, True, drop_nonfinite=True)
    models = ("a", "b") if score in TWO_MODELS else ("model",)
    alignments = list(columns.read(columns.find([f"clip_{m}_similarity_score" for m in models])))
    uids = pool.uids
    if score not in TWO_MODELS:
        write_scores(out, uids, {COLUMN: alignments[0].astype(np.float64)})
        return
    if not subsets:
        raise InputError(f"--score {score} wants --subsets: those that its models were trained on")
    trained_on = np.zeros(len(pool), np.bool_)
    for path in subsets:
        rows = find_uids(pool.high, pool.low, read_subset(path)[0])
        # round 0's subset also has pairs that cannot be embedded, and have no score
        trained_on[rows[rows >= 0]] = True
    first, second = alignments
    in_first = in_first_half(uids, seed)
    scores = cross_fitted(first, second, in_first, trained_on, score == "memorisation")
    write_scores(out, uids, {COLUMN: scores.score, UNSEEN: scores.unseen, SEEN: scores.seen})


def main() -> None:
    """Parse the flags and call `score_round`."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--score", choices=["alignment", *TWO_MODELS], required=True)
    add("--metadata_dir", required=True, help="made by `datacomp-flyt embed` with the models")
    add("--subsets", nargs="+", type=Path, default=(), help="subsets the two models trained on")
    add("--seed", type=int, default=0, help="the run's seed, which decides the halves")
    add("--out", type=Path, required=True, help="folder of score tables")
    score_round(**vars(parser.parse_args()))
