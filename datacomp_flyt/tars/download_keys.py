"""Looks up uids by img2dataset's keys, in the tables beside the tars of one download.

A key is the number of a sample within a download, so it is unique only there.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datacomp_flyt.errors import InputError
from datacomp_flyt.files.open_file import readable
from datacomp_flyt.pool.arrow_types import plain_array, plain_column
from datacomp_flyt.pool.parquet import KEY, is_text
from datacomp_flyt.pool.parquet_file import open_parquet
from datacomp_flyt.pool.uid_search import UidIndex, sort_uids
from datacomp_flyt.pool.uids import UID_DTYPE, InvalidUid, decode_uids, format_uid
from datacomp_flyt.streams import say
from datacomp_flyt.tars.shards import list_shards
from datacomp_flyt.tars.uids import first_uid, table_beside
from datacomp_flyt.threads import map_threads

_LONGEST = UID_DTYPE.itemsize  # characters of a key; img2dataset's have about ten
_WAY_OUT = "give the tars that img2dataset wrote, each with its parquet beside it"


@dataclass(frozen=True)
class DownloadKeys:
    """Looks up uids by key; the tables are read once, when they are needed.

    Attributes:
        shards_dir: the tars, as `list_shards` takes them.
        num_workers: threads.
    """

    shards_dir: str
    num_workers: int

    @property
    def name(self) -> str:
        return f"--shards_dir {self.shards_dir}"

    def read(self) -> None:
        """Read the tables.

        Raises:
            InputError: a table cannot be read, none has keys, or a key occurs twice.
        """
        _ = self._table

    def uids_of(self, keys: pa.Array) -> NDArray[np.void]:
        """Look up the uids [n] of keys [n].

        Raises:
            InvalidUid: a value is null, or is not a key of the tables.
        """
        index, uids = self._table
        rows = index.locate(_packed(keys))
        if len(unknown := np.flatnonzero(rows < 0)):
            raise InvalidUid(int(unknown[0]), keys[int(unknown[0])].as_py())
        return uids[rows]

    @cached_property
    def _table(self) -> tuple[UidIndex, NDArray[np.void]]:
        """The sorted packed keys, and the uid of each."""
        tars = list_shards(self.shards_dir, "--shards_dir")
        with_table = [tar for tar in tars if os.path.isfile(table_beside(tar))]
        tables = [table_beside(tar) for tar in with_table]
        parts = map_threads(_read, with_table, self.num_workers, "reading keys", "table")
        if not sum(len(keys) for keys, _ in parts):
            raise InputError(f"{self.name} has no table with keys and uids: {_WAY_OUT}")
        keys = np.concatenate([keys for keys, _ in parts])
        high, low = keys["f0"].copy(), keys["f1"].copy()
        order = sort_uids(high, low)
        repeats = np.flatnonzero((high[1:] == high[:-1]) & (low[1:] == low[:-1]))
        if len(repeats):
            table_of = np.repeat(np.arange(len(tables)), [len(keys) for keys, _ in parts])
            one, other = sorted(order[repeats[0] : repeats[0] + 2])
            key = keys[one : one + 1].byteswap().tobytes().rstrip(b"\0").decode(errors="replace")
            raise InputError(
                f"{self.name} has key {key!r} twice, in {tables[table_of[one]]} and "
                f"{tables[table_of[other]]} ({len(repeats):,} such pairs): keys join scores to "
                "uids within one download alone, so give the tars of one"
            )
        lacking = len(tars) - len(tables)
        say(
            f"{self.name}: {len(order):,} keys of {len(tables):,} tables join scores to uids"
            + (f" ({lacking:,} tars have no table beside them)" if lacking else "")
        )
        uids = np.concatenate([uids for _, uids in parts]).take(order)
        return UidIndex(high, low), uids


def _read(tar: str) -> tuple[NDArray[np.void], NDArray[np.void]]:
    """Read the packed keys and the uids of the table beside a tar."""
    path = table_beside(tar)
    with readable(path, "parquet", "download it again"), pa.OSFile(path) as handle:
        file = open_parquet(handle)
        missing = [name for name in (KEY, "uid") if name not in file.schema_arrow.names]
        if missing:
            raise InputError(f"{path} has no column {missing[0]!r}: {_WAY_OUT}")
        table = file.read([KEY, "uid"])
        if not is_text(table[KEY].type):
            raise InputError(
                f"{path} has column {KEY!r} of type {table[KEY].type}, which is text in "
                f"img2dataset's: {_WAY_OUT}"
            )
        column = plain_column(table["uid"])
        valid = column.is_valid()
        packed = [_packed(keys) for keys in table[KEY].chunks]
        keys = np.concatenate([np.empty(0, UID_DTYPE), *packed])[np.asarray(valid, np.bool_)]
        try:
            uids = decode_uids(column.filter(valid))
        except InvalidUid as error:
            raise InputError(f"{path} has uid {error.value!r}: {_WAY_OUT}") from None
        first = np.empty(0, UID_DTYPE)
        with contextlib.suppress(Exception):  # the tar is damaged, which its readers report
            first = first_uid(tar)
        if len(first) and not np.isin(first, uids).any():
            raise InputError(
                f"{path} is not the table of {tar}, whose first uid {format_uid(first[0])} it "
                f"lacks: {_WAY_OUT}"
            )
        usable = keys["f0"] != 0
        return keys[usable], uids[usable]


def _packed(keys: pa.Array) -> NDArray[np.void]:
    """Pack keys into 16 bytes each, as a `u8,u8` array [n] that sorts like the keys.

    A value that is no text, empty or longer becomes 0, which is no key of img2dataset.
    """
    packed = np.zeros(len(keys), UID_DTYPE)
    if not is_text(keys.type) or not len(keys):
        return packed
    import pyarrow.compute as pc  # only tables without uids need it

    text = pc.fill_null(plain_array(keys).cast(pa.large_string()), "")
    text = pc.if_else(pc.less_equal(pc.binary_length(text), _LONGEST), text, "")
    padded = pc.ascii_rpad(text, width=_LONGEST, padding="\0")
    words = np.frombuffer(padded.buffers()[2], ">u8", 2 * len(text))
    packed["f0"], packed["f1"] = words[0::2], words[1::2]
    return packed
