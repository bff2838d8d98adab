"""The score columns of a sample, and the score that its examples are ordered by."""

from __future__ import annotations

import argparse
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
        name: of a column, or "mixed score".
        values: [n]; NaN where there is none.
        model: the mixing model, if one was given, with the statistics that standardised its inputs.
        inputs: the model's columns [n] by name.
        left_out: the model's columns that there are not.
    """

    name: str
    values: NDArray[np.floating]
    model: LinearMixingModel | None = None
    inputs: dict[str, NDArray[np.floating]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()


def default_columns(shards: list[ParquetShard], tables: list[ParquetShard]) -> list[str]:
    """All columns of score tables, and the metadata's CLIP scores where these lack them."""
    table, metadata = ScoreTable(tables, ""), ScoreTable(shards, "").columns
    # a published column of another type than numbers is refused when it is read, not passed over
    there = {*table.columns, *(name for name in PUBLISHED_COLUMNS if name in table)}
    there |= {
        name
        for name, column in METADATA_COLUMN_OF.items()
        if column in metadata and column not in table
    }
    if not there:
        raise InputError(
            "there is no score to report on: give --scores_dir, or --score_columns of the metadata"
        )
    known = [name for name in PUBLISHED_COLUMNS if name in there]
    return known + sorted(there - set(known))  # not in the order of files


def read_scores(
    args: argparse.Namespace,
    sample: PoolSample,
    names: list[str],
    model: LinearMixingModel | None,
    keys: DownloadKeys | None = None,
) -> tuple[dict[str, NDArray[np.floating]], Ranking]:
    """Columns [n] by name, and the score that orders examples; NaN where an example has none.

    Args:
        args: `metadata_dir`, `scores_dir`, `score` and `num_workers` of the flags.
        sample: the sample of examples.
        names: columns to show.
        model: the mixing model, if one was given; its columns that do not exist are left out.
        keys: looks up the uids of score tables that have img2dataset's keys instead.

    Raises:
        InputError: a column does not exist, has no finite value, or has two for an example.
    """
    places = (args.metadata_dir, args.scores_dir, args.num_workers)
    columns = Columns(sample.pool, *places, True, True, keys=keys)
    otherwise = "leave it out of --score_columns"
    names = columns.find(names, otherwise=otherwise)
    wanted = columns.find([args.score]) if args.score else []
    left_out: tuple[str, ...] = ()
    if model is not None:
        mixed = columns.find(model.columns, allow_missing=True)
        left_out = tuple(name for name in model.columns if name not in mixed)
        wanted += mixed
        model = model.restricted_to(mixed)
    every = list(dict.fromkeys([*names, *wanted]))
    read = dict(zip(every, columns.read(every), strict=True))
    for name, values in read.items():
        if not np.isfinite(values[sample.chosen]).any():
            raise InputError(f"column {name!r} has no finite value in the sample: leave it out")
    if model is None:
        name = args.score or names[0]
        ranking = Ranking(name, read[name])
    else:
        values, model = _mixed(model, read, sample)
        inputs = {name: read[name] for name in model.columns}
        ranking = Ranking("mixed score", values, model, inputs, left_out)
        if args.score:
            ranking = replace(ranking, name=args.score, values=read[args.score])
    return {name: read[name] for name in names}, ranking


def _mixed(
    model: LinearMixingModel, read: dict[str, NDArray[np.floating]], sample: PoolSample
) -> tuple[NDArray[np.float64], LinearMixingModel]:
    """Mixed scores [n]; statistics that the model does not bring are the sample's."""
    columns = [read[name] for name in model.columns]
    if model.standardize and (model.means is None or model.stds is None):
        # not those of all rows read: examples with pictures were asked for by uid
        _, model = mix(model, [values[sample.chosen] for values in columns])
    return mix(model, columns)
