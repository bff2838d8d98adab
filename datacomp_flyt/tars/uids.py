"""Reads the uids of the samples in a tar shard, from img2dataset's table or from the tar."""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections import Counter
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datacomp_flyt.installation import needs_extra
from datacomp_flyt.pool.arrow_types import plain_column
from datacomp_flyt.pool.parquet import STATUS, succeeded
from datacomp_flyt.pool.parquet_file import open_parquet
from datacomp_flyt.pool.uids import UID_DTYPE, decode_uids
from datacomp_flyt.tars.nothing_usable import MemberCounts, nothing_usable

_UID = re.compile("[0-9a-fA-F]{32}")
_LONGEST = 1 << 20  # bytes of a json
_BLOCK = 512  # bytes; a complete tar ends with an empty block


class TarUids(NamedTuple):
    """The samples of a tar that have an image and a uid.

    Attributes:
        uids: `u8,u8` array [n], in the order of the samples.
        opened: whether the tar itself was read.
        failed: the number of rows of the table whose download failed.
        unusable: the number of samples without an image or without a uid.
        invalid: the first value of a uid that is not valid.
        problem: the damage of the tar, if any; the uids are then those before the damage.
    """

    uids: NDArray[np.void]
    opened: bool
    failed: int = 0
    unusable: int = 0
    invalid: str | None = None
    problem: str | None = None


def table_beside(tar: str) -> str:
    """Return the path of img2dataset's table of a tar."""
    return os.path.splitext(tar)[0] + ".parquet"


def uids_of_tar(tar: str, with_image: bool = True) -> TarUids:
    """Read the uids of a tar from the table beside it if that can be used, else from the tar.

    Args:
        tar: a path, or an address that webdataset opens.
        with_image: leave out samples without an image.
    """
    return uids_of_table(tar) or read_uids_of_tar(tar, with_image)


def uids_of_table(tar: str) -> TarUids | None:
    """Read the uids of a tar's images from its table; None if the table cannot be used.

    The table is not used if it has no `status` column, since it may then list failed downloads; if
    the tar has no end marker, since it has then lost samples; or if the first uid of the tar is not
    in the table, which then belongs to another download.
    """
    table = table_beside(tar)
    if not os.path.isfile(table) or not os.path.isfile(tar) or not _ends_as_tars_do(tar):
        return None
    try:
        with pa.OSFile(table) as handle:
            file = open_parquet(handle)
            names = file.schema_arrow.names
            if names.count("uid") != 1 or names.count(STATUS) != 1:
                return None
            rows = file.read(["uid", STATUS])
        downloaded = succeeded(rows[STATUS])
        uids = plain_column(rows["uid"]).filter(pa.array(downloaded))
        valid = uids.filter(uids.is_valid())
        decoded = decode_uids(valid)
        first = first_uid(tar)
        if (len(decoded) or len(first)) and not np.isin(first, decoded).any():
            return None
        return TarUids(
            decoded,
            opened=False,
            failed=int(np.count_nonzero(~downloaded)),
            unusable=len(uids) - len(valid),
        )
    except Exception:  # Arrow raises many types; the tar has the same uids
        return None


def read_uids_of_tar(tar: str, with_image: bool = True) -> TarUids:
    """Read the uids of a tar from the tar itself. See `uids_of_tar`."""
    with needs_extra("train"):  # imports Pillow, which tables do not need
        from datacomp_flyt.tars.samples import (
            Skip,
            UnreadableShard,
            read_tar,
            stored_image,
            stored_uid,
        )

    uids, invalid, problem = list[str](), None, None
    seen, whole, reasons = MemberCounts(), False, Counter[str]()
    try:
        for sample in read_tar(tar, seen):
            try:
                uid = stored_uid(sample)
                if not _UID.fullmatch(uid):
                    invalid = invalid or uid
                    raise Skip("no uid of 32 hexadecimal characters")
                if not with_image:
                    uids.append(uid)
                stored_image(sample)
                if with_image:
                    uids.append(uid)
                whole = True
            except Skip as skip:
                reasons[skip.reason] += 1
    except UnreadableShard as error:
        problem = str(error)
    if problem is None and seen.members and not whole:
        uids, problem = [], str(nothing_usable("no sample can be used", seen, reasons))
    return TarUids(
        decode_uids(pa.array(uids, pa.string())),
        opened=True,
        unusable=sum(reasons.values()),
        invalid=invalid,
        problem=problem,
    )


def _ends_as_tars_do(tar: str) -> bool:
    try:
        with open(tar, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(-min(size, _BLOCK), os.SEEK_END)
            return size >= _BLOCK and not file.read().strip(b"\0")
    except OSError:
        return False


def first_uid(tar: str) -> NDArray[np.void]:
    """Read the uid [1] in the first json of a tar; an empty array if the tar has no json.

    Raises:
        Exception: of many types; the tar cannot be read, or the json has no uid.
    """
    with tarfile.open(tar, "r:") as members:
        for member in members:
            if member.isreg() and member.name.endswith(".json") and member.size <= _LONGEST:
                file = members.extractfile(member)
                assert file is not None, "it is a regular file"
                return decode_uids(pa.array([json.load(file)["uid"]], pa.string()))
    return np.empty(0, UID_DTYPE)
