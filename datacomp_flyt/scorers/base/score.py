"""Make a score column over a pool: the function behind `datacomp-flyt score`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from datacomp_flyt.engines.flags import make_engine
from datacomp_flyt.errors import InputError
from datacomp_flyt.files.locks import lock_outputs
from datacomp_flyt.files.output_files import check_save_path
from datacomp_flyt.files.settings_file import SETTINGS_FILE
from datacomp_flyt.pool.embeddings import NOT_UNIT_NORM
from datacomp_flyt.pool.manifest import check_against
from datacomp_flyt.pool.outputs import Output, check_outputs, watch_inputs
from datacomp_flyt.pool.parquet import check_shards, open_shards
from datacomp_flyt.scorers.base.embedding_blocks import check_widths
from datacomp_flyt.scorers.base.registry import option_names, scorer_factory
from datacomp_flyt.scorers.base.score_pool import ScoreReport, score_pool
from datacomp_flyt.scorers.base.scorer import MetadataScorer, Scorer
from datacomp_flyt.streams import say
from datacomp_flyt.tars.shard_names import absolute_path, shard_name, shards_by_name
from datacomp_flyt.threads import default_num_workers


def score(
    scorer: str | Scorer,
    *,
    scores_dir: str | Path,
    metadata_dir: str | Path | None = None,
    shards_dir: str | Path | None = None,
    manifest: str | Path | None = None,
    column: str | None = None,
    engine: str | None = None,
    ray_address: str | None = None,
    num_workers: int | None = None,
    device: str = "auto",
    retries: int = 2,
    **options: Any,
) -> ScoreReport:
    """Make `SCORES_DIR/COLUMN/SHARD.parquet`, with uid and score, for each shard of a pool.

    Shards that were finished before are not scored again. A shard that fails raises no error: see
    `failed` of the result.

    Args:
        scorer: the name of a scorer, as in `--scorer`, or a scorer.
        scores_dir: a local folder; it gets one folder for each column.
        metadata_dir: the pool, for scorers of metadata and npz: a local or cloud folder of parquet.
        shards_dir: the pool's tars, for scorers of images: a folder, or a pattern with braces.
        manifest: a file made by `datacomp-flyt manifest`; the pool must have the files it lists.
        column: the name of the score column, for scorers with one column; None for the published
            name.
        engine: "processes", also for None, or "ray".
        ray_address: the address of a Ray cluster; None starts Ray on this machine.
        num_workers: workers; None for one on each core or GPU. The result does not depend on them.
        device: "auto", "cpu" or "cuda".
        retries: the number of retries of a shard that failed.
        options: the scorer's own options, named as its flags.

    Returns:
        the numbers of shards and examples, and the error of each shard that failed.

    Raises:
        InputError: an argument or a file is wrong, the folder holds scores that were made under
            other settings, or no example has a score.
        TypeError: the scorer has no such option, or an option is missing.
    """
    given = {"metadata_dir": metadata_dir, "shards_dir": shards_dir, "scores_dir": scores_dir}
    paths = {name: None if path is None else str(path) for name, path in given.items()}
    scorer, name, tables, pool = _prepare(scorer, options, paths, manifest, column)
    with (
        lock_outputs(f"{scores_dir}/{scorer.columns[0]}"),
        make_engine(
            engine, ray_address=ray_address, num_workers=num_workers, device=device,
            retries=retries, uses_gpu=scorer.uses_gpu,
        ) as workers,
    ):  # fmt: skip
        report = score_pool(
            scorer, name, pool.shards, tables, workers,
            retries=retries, num_rows=pool.num_rows, source=pool.source, check=pool.check,
        )  # fmt: skip
    _say(report, scorer.settings.get("renormalize") is False)
    return report


class _Shards(NamedTuple):
    """The shards of a pool by name, their rows if known, their source, and a check of one shard.

    The check raises InputError if the shard has changed.
    """

    shards: dict[str, Any]
    num_rows: dict[str, int] | None
    source: str
    check: Callable[[str], None]


def _prepare(
    scorer: str | Scorer,
    options: dict[str, Any],
    paths: dict[str, str | None],
    manifest: str | Path | None,
    column: str | None,
) -> tuple[Scorer, str, Path, _Shards]:
    """Check the arguments of `score`.

    Returns:
        the scorer, its name, the folder of all score tables, and the shards of the pool.
    """
    if column is not None:
        _check_column(column)
    if isinstance(scorer, Scorer):
        if options:
            raise TypeError(f"{', '.join(options)}: options are for a scorer given by its name")
        name, flags = type(scorer).__name__, {**vars(scorer), **paths, "manifest": manifest}
        unchanged = watch_inputs(flags)
    else:
        name, flags = scorer, {**options, **paths, "manifest": manifest}
        unchanged = watch_inputs(flags)
        scorer = _make(name, options, {**paths, "column": column})
    if column is not None:
        _rename(scorer, name, column)
    folder = f"{paths['scores_dir']}/{scorer.columns[0]}"
    tables = check_save_path(f"{folder}/{SETTINGS_FILE}", "--scores_dir").parents[1]
    written = Output("--scores_dir", Path(folder), ("*.parquet", SETTINGS_FILE), whole=True)
    check_outputs([written], flags)
    source = paths["shards_dir" if scorer.reads_images else "metadata_dir"]
    pool = (_tars if scorer.reads_images else _metadata)(source, name, manifest)
    if isinstance(scorer, MetadataScorer) and scorer.arrays:
        check_widths(list(pool.shards.values()), scorer.arrays, default_num_workers())

    def check(shard: str) -> None:
        pool.check(shard)
        unchanged()

    return scorer, name, tables, pool._replace(check=check)


def _make(name: str, options: dict[str, Any], given: dict[str, Any]) -> Scorer:
    """Make a scorer of its options and of those flags of all scorers that it takes."""
    factory = scorer_factory(name)
    names = option_names(factory)
    return factory(**options, **{flag: given[flag] for flag in given if flag in names})


def _rename(scorer: Scorer, name: str, column: str) -> None:
    if len(scorer.columns) > 1:
        raise InputError(
            f"--column {column} names one score and {name} makes {len(scorer.columns)}: leave it "
            "out"
        )
    scorer.columns = (column,)


def _check_column(name: str) -> None:
    """Raise InputError unless the name can be that of a folder which readers of tables do not skip.

    A name such as `..` would put the scores outside of --scores_dir.
    """
    if name in ("", "uid") or name.startswith((".", "_")) or re.search("[/\\0]", name):
        raise InputError(
            f"--column {name!r} is no name of a score: it names a folder, too, so give a name "
            "other than uid, without / and not beginning with . or _"
        )


def _metadata(folder: str | None, scorer: str, manifest: str | Path | None) -> _Shards:
    if folder is None:
        raise InputError(f"--scorer {scorer} wants --metadata_dir: the pool's parquet and npz")
    if manifest is not None:
        check_against(str(manifest), folder, "--metadata_dir")
    shards = open_shards(folder, "--metadata_dir", default_num_workers())
    shards_by_name([shard.path for shard in shards], "--metadata_dir")
    named = {shard_name(shard.path): shard for shard in shards}
    num_rows = {name: shard.num_rows for name, shard in named.items()}
    return _Shards(named, num_rows, absolute_path(folder), lambda name: check_shards([named[name]]))


def _tars(folder: str | None, scorer: str, manifest: str | Path | None) -> _Shards:
    from datacomp_flyt.tars.samples import require_webdataset
    from datacomp_flyt.tars.shards import list_shards, watch_tars

    if folder is None:
        raise InputError(f"--scorer {scorer} wants --shards_dir: it looks at images, in tars")
    if manifest is not None:
        check_against(str(manifest), folder, "--shards_dir")
    require_webdataset()
    named = shards_by_name(list_shards(folder, "--shards_dir"), "--shards_dir")
    return _Shards(named, None, absolute_path(folder), watch_tars(named))


def _say(report: ScoreReport, can_renormalize: bool) -> None:
    done = f"{report.num_scored:,} shards scored"
    if report.num_finished_before:
        done += f", {report.num_finished_before:,} were there"
    if report.failed:
        done += f", {len(report.failed):,} failed"
    say(f"{report.folder}: {', '.join(report.columns)}: {done}")
    for reason, count in sorted(report.counts.items()):
        if count:
            way_out = reason == NOT_UNIT_NORM and can_renormalize
            hint = ", used as it is: --renormalize brings it to 1" if way_out else ""
            say(f"  {count:,} examples: {reason}{hint}")
    if report.num_without_score:
        say(
            f"  {report.num_without_score:,} of {report.num_examples:,} examples have no score "
            "(NaN): selection refuses them, or leaves them out with --drop_nonfinite"
        )
