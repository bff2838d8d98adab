"""Opens a pool: its examples, and the score columns that can be read for them."""

from __future__ import annotations

from pathlib import Path

from datacomp_flyt.engines.engine import Engine
from datacomp_flyt.engines.flags import choose_engine
from datacomp_flyt.errors import InputError
from datacomp_flyt.files.output_files import check_save_path
from datacomp_flyt.mixing.columns import Columns
from datacomp_flyt.mixing.columns_in_files import FileColumns
from datacomp_flyt.pool.manifest import check_against
from datacomp_flyt.pool.pool import read_pool
from datacomp_flyt.tars.download_keys import DownloadKeys
from datacomp_flyt.tars.image_list import available_images
from datacomp_flyt.threads import check_num_workers


def open_pool(
    metadata_dir: str | Path,
    *,
    scores: str | Path | None = None,
    available: str | Path | None = None,
    shards_dir: str | Path | None = None,
    manifest: str | Path | None = None,
    work_dir: str | Path | None = None,
    engine: str | None = None,
    ray_address: str | None = None,
    num_workers: int | None = None,
    allow_partial_scores: bool = False,
    drop_nonfinite: bool = False,
) -> Columns:
    """Read the uids of a pool and find its score columns.

    Args:
        metadata_dir: folder, local or in a cloud, of DataComp metadata: parquet, with or without
            npz.
        scores: folder of score tables (`--scores_dir`): parquet files with a `uid` column and
            columns of scores.
        available: list of the images that you have, made by `datacomp-flyt available`.
        shards_dir: the tars, from which that list is made in memory.
        manifest: file of `datacomp-flyt manifest` that the metadata must agree with.
        work_dir: folder for temporary arrays, for pools larger than memory. Each set of columns
            needs a folder of its own.
        engine: "processes" or "ray", which sorts the pool in `work_dir`.
        ray_address: address of an existing Ray cluster, or "auto".
        num_workers: threads, and workers of the engine; None for one on each core.
        allow_partial_scores: leave out examples that have no score.
        drop_nonfinite: leave out examples with a score that is NaN, infinite or null.

    Returns:
        the pool; `len(pool)` is its number of examples and `pool.columns` names its score
        columns.

    Raises:
        InputError: a file is missing or damaged, or arguments contradict each other.
    """
    threads = check_num_workers(num_workers)
    sorter = pool_engine(work_dir, engine, ray_address, num_workers)
    folder = checked_work_dir(work_dir)
    return open_columns(
        metadata_dir,
        scores_dir=scores,
        available=available,
        shards_dir=shards_dir,
        manifest=manifest,
        work_dir=folder,
        engine=sorter,
        num_workers=threads,
        allow_partial_scores=allow_partial_scores,
        drop_nonfinite=drop_nonfinite,
    )


def open_columns(
    metadata_dir: str | Path,
    *,
    scores_dir: str | Path | None,
    available: str | Path | None,
    shards_dir: str | Path | None,
    manifest: str | Path | None,
    work_dir: Path | None,
    engine: Engine | None,
    num_workers: int,
    allow_partial_scores: bool,
    drop_nonfinite: bool,
    single_use: bool = False,
) -> Columns:
    """Open a pool whose engine and folder are checked; see `open_pool`.

    Args:
        work_dir: a folder that exists; None for a pool in memory.
        engine: the engine that sorts in `work_dir`.
        single_use: the caller holds a lock on `work_dir`, and reads no column after it has asked
            for the uids, so columns can be freed then.
    """
    metadata_dir = str(metadata_dir)
    if manifest is not None:
        check_against(str(manifest), metadata_dir, "--metadata_dir")
    images = available_images(_text(available), _text(shards_dir), num_workers)
    keys = None if shards_dir is None else DownloadKeys(str(shards_dir), num_workers)
    folders = (metadata_dir, _text(scores_dir), num_workers)
    allowed = (allow_partial_scores, drop_nonfinite)
    if work_dir is not None and engine is not None:
        return FileColumns(
            *folders, *allowed, work_dir, engine, available=images, keys=keys, lock=not single_use
        )
    pool = read_pool(metadata_dir, num_workers, available=images)
    return Columns(pool, *folders, *allowed, keys=keys, single_use=single_use)


def pool_engine(
    work_dir: str | Path | None,
    engine: str | None,
    ray_address: str | None,
    num_workers: int | None,
) -> Engine | None:
    """Return the engine that sorts a pool in `work_dir`; None without a `work_dir`.

    Raises:
        InputError: an engine without a `work_dir`, an address without Ray, or Ray is not installed.
    """
    if work_dir is not None:
        # the number of cores of this machine says nothing about those of a cluster
        return choose_engine(engine, ray_address, None if ray_address else num_workers, "cpu")
    for flag, value in (("engine", engine), ("ray_address", ray_address)):
        if value is not None:
            raise InputError(
                f"--{flag} says where --work_dir is sorted, and a pool in memory is not: add "
                f"--work_dir, or leave --{flag} out"
            )
    return None


def checked_work_dir(work_dir: str | Path | None) -> Path | None:
    """Make the folder of `--work_dir` and return it; None if there is none.

    Raises:
        InputError: a cloud path, or a folder that cannot be written.
    """
    if work_dir is None:
        return None
    if "://" in str(work_dir):
        raise InputError(f"--work_dir {work_dir} is a cloud path: name a local folder")
    return check_save_path(Path(work_dir) / "job.json", "--work_dir").parent


def _text(path: str | Path | None) -> str | None:
    return None if path is None else str(path)
