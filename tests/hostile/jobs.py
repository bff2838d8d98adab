"""Readers of files that commands write: manifests, resharded parts, external sorts."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np

from tests.hostile import valid
from tests.hostile.oracle import digest
from tests.hostile.reader import PICTURE, Check, Reader
from tests.hostile.valid import COLUMNS, Make


def _manifest(folder: Path) -> Any:
    from datacomp_flyt.pool.manifest import check_against, read_manifest

    path, metadata = folder / "m.json", folder / "metadata"
    check_against(str(path), str(metadata), "--metadata_dir")
    return _entries(read_manifest(path), metadata)


def _journal(folder: Path) -> Any:
    from datacomp_flyt.pool.folder_hashes import hash_folder

    metadata = folder / "metadata"
    return _entries(hash_folder(str(metadata), "--dir", folder / "m.hashed.jsonl", 1), metadata)


def _entries(manifest: Any, folder: Path) -> Any:
    """Return the entries of a manifest, and the sizes of the files."""
    entries = [[name, *astuple(file)] for name, file in manifest.items()]
    return [entries, sorted((path.name, path.stat().st_size) for path in folder.iterdir())]


def _check_entries(result: Any) -> str | None:
    entries, files = result
    if sorted((name, size) for name, size, *_ in entries) != files:
        return "other files or sizes than those of the folder"
    for _, size, sha256, rows in entries:
        if type(size) is not int or type(sha256) is not str or type(rows) not in (int, type(None)):
            return "an invalid size, hash or number of rows"
    return None


def _part(folder: Path) -> Any:
    from datacomp_flyt.datacomp.resharder_run import open_run

    part = open_run(folder / "part", folder / "subset.npy")
    return [[tar.name for tar in part.tars], part.pool_shards]


def _check_part(result: Any) -> str | None:
    return None if result[0] == valid.PART_TARS else "other tars than those of the part"


def _draws(folder: Path) -> Any:
    from datacomp_flyt.datacomp.resharded_parts import _draws_of_tar

    return list(_draws_of_tar(str(folder / "part" / valid.PART_TARS[0])))


def _check_draws(result: Any) -> str | None:
    uids, numbers = result
    fine = len(uids) == len(numbers) and (numbers >= 0).all()
    return None if fine else "invalid draws"


def _pictures(folder: Path) -> Any:
    from datacomp_flyt.report.examples import _read_tar

    row_of = {uid: row for row, uid in enumerate(valid.uids(4))}
    pictures = _read_tar(str(folder / "a.tar"), row_of)
    return sorted((row, *astuple(picture)) for row, picture in pictures.items())


def _check_pictures(result: Any) -> str | None:
    for _, image, width, height, text, problem in result:
        if not isinstance(text, str) or bool(image) == bool(problem):
            return "neither a picture nor a problem, or both"
        if image and not 0 < max(width, height) <= 1000:
            return "a picture of another size"
    return None if len(result) == 4 else "other pictures than requested"


def in_memory(folder: Path, partial: bool = False) -> Any:
    """Join columns in memory; return the number of examples, and the columns."""
    from datacomp_flyt.mixing.columns import Columns
    from datacomp_flyt.pool.pool import read_pool

    pool = read_pool(str(folder / "metadata"), 1, progress=False)
    table = Columns(pool, str(folder / "metadata"), str(folder / "scores"), 1, partial, partial)
    return [np.array(len(pool)), *table.read(table.find(COLUMNS, partial))]


def streamed(folder: Path) -> Any:
    """Join columns in files, and assert the result, or the refusal, of `in_memory`."""
    from datacomp_flyt.errors import InputError

    right = None
    with contextlib.suppress(InputError):
        right = in_memory(folder)
    work = Path(tempfile.mkdtemp(dir=folder))
    try:
        columns = _in_files(folder, work)
    except InputError:
        assert right is None, "refused, but not in memory"
        raise
    finally:
        shutil.rmtree(work)
    assert right is not None, "not refused, but refused in memory"
    assert digest(columns) == digest(right[1:]), "other columns than in memory"
    return columns


def resumed(folder: Path) -> Any:
    """Resume a join in files, which may be refused or start again."""
    work = Path(tempfile.mkdtemp(dir=folder))
    try:
        shutil.copytree(folder / "work", work, dirs_exist_ok=True)
        columns = _in_files(folder, work)
    finally:
        shutil.rmtree(work)
    assert digest(columns) == digest(in_memory(folder)[1:]), "other columns than in memory"
    return columns


def _in_files(folder: Path, work: Path) -> Any:
    from tests.engines.here import Here

    return [np.array(column) for column in valid.file_columns(folder, work, Here())]


_JOB: tuple[Callable[[Path], Any], Check] = (resumed, lambda _: None)  # `resumed` compares
_HALF: Make = valid.job(most=2)
JOB_READERS: dict[str, Reader] = {
    "manifest": Reader(valid.manifest, "m.json", _manifest, _check_entries),
    "hashed": Reader(valid.manifest, "m.hashed.jsonl", _journal, _check_entries),
    "part": Reader(valid.part, "part/meta.json", _part, _check_part),
    "draws": Reader(valid.part, "part/00000000.tar", _draws, _check_draws),
    "pictures": Reader(valid.tar, "a.tar", _pictures, _check_pictures, memory=PICTURE),
    "job": Reader(_HALF, "work/job.json", *_JOB),
    "partitioned": Reader(_HALF, "work/done/0-000000.json", *_JOB),
    "bucket": Reader(valid.job(), "work/done/bucket-00000.json", *_JOB),
}
