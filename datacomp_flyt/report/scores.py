"""Reads the score columns of a sample, and the score that orders its examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt.errors import InputError
from datacomp_flyt.mixing import LinearMixingModel, mix
from datacomp_flyt.mixing.columns import Columns
from datacomp_flyt.mixing.published import METADATA_COLUMN_OF, PUBLISHED_COLUMNS
from datacomp_flyt.pool.parquet import ParquetShard
from datacomp_flyt.pool.score_table import ScoreTable
from datacomp_flyt.report.sample import PoolSample
from datacomp_flyt.tars.download_keys import DownloadKeys


@dataclass(frozen=True)
class Ranking:
    """The score that orders examples.

    Attributes:
        name: the name of a column, or "mixed score".
        values: the score of each example [n]; NaN for an example without one.
        model: the mixing model, if one was given, with the statistics that standardised its inputs.
        inputs: the model's columns [n] by name.
        left_out: the model's columns that do not exist.
    """

    name: str
    values: NDArray[np.floating]
    model: LinearMixingModel | None = None
    inputs: dict[str, NDArray[np.floating]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()


def default_columns(shards: list[ParquetShard], tables: list[ParquetShard]) -> list[str]:
    """Return all columns of the score tables, and the CLIP scores that only the metadata have.

    Raises:
        InputError: there is no score.
    """
    table, metadata = ScoreTable(tables, ""), ScoreTable(shards, "").columns
    # a published column that does not hold numbers is kept here, so that reading refuses it
    names = {*table.columns, *(name for name in PUBLISHED_COLUMNS if name in table)}
    names |= {
        name
        for name, column in METADATA_COLUMN_OF.items()
        if column in metadata and column not in table
    }
    if not names:
        raise InputError(
            "there is no score to report on: give --scores_dir, or --score_columns of the metadata"
        )
    published = [name for name in PUBLISHED_COLUMNS if name in names]
    return published + sorted(names - set(published))  # whatever the order of the files


def read_scores(
    sample: PoolSample,
    names: Sequence[str],
    model: LinearMixingModel | None,
    score: str | None,
    *,
    metadata_dir: str | None,
    scores_dir: str | None,
    num_workers: int,
    keys: DownloadKeys | None = None,
) -> tuple[dict[str, NDArray[np.floating]], Ranking]:
    """Read columns [n] by name, and the score that orders examples; NaN if an example has none.

    Args:
        sample: the sample of examples.
        names: columns to show.
        model: the mixing model, if one was given; its columns that do not exist are left out.
        score: the column that orders examples; None for the mixed score, else the first column.
        metadata_dir, scores_dir: the folders of the metadata and of score tables, if given.
        num_workers: threads.
        keys: looks up the uids of score tables that have img2dataset's keys instead.

    Raises:
        InputError: a column does not exist, has no finite value, or has two for an example.
    """
    columns = Columns(sample.pool, metadata_dir, scores_dir, num_workers, True, True, keys=keys)
    names = columns.find(names, otherwise="leave it out of --score_columns")
    more = columns.find([score]) if score else []
    left_out: tuple[str, ...] = ()
    if model is not None:
        mixed = columns.find(model.columns, allow_missing=True)
        left_out = tuple(name for name in model.columns if name not in mixed)
        more += mixed
        model = model.restricted_to(mixed)
    all_names = list(dict.fromkeys([*names, *more]))
    read = dict(zip(all_names, columns.read(all_names), strict=True))
    for name, values in read.items():
        if not np.isfinite(values[sample.chosen]).any():
            raise InputError(f"column {name!r} has no finite value in the sample: leave it out")
    if model is None:
        name = score or names[0]
        ranking = Ranking(name, read[name])
    else:
        values, model = _mixed(model, read, sample)
        inputs = {name: read[name] for name in model.columns}
        ranking = Ranking("mixed score", values, model, inputs, left_out)
        if score:
            ranking = replace(ranking, name=score, values=read[score])
    return {name: read[name] for name in names}, ranking


def _mixed(
    model: LinearMixingModel, read: dict[str, NDArray[np.floating]], sample: PoolSample
) -> tuple[NDArray[np.float64], LinearMixingModel]:
    """Compute mixed scores [n]; a model without statistics is standardised over the sample."""
    columns = [read[name] for name in model.columns]
    if model.standardize and (model.means is None or model.stds is None):
        # rows that were read for their pictures do not count
        _, model = mix(model, [values[sample.chosen] for values in columns])
    return mix(model, columns)
