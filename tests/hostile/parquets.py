"""Rewrites parquet tables as other tools might: other types, columns, rows and encodings."""

from __future__ import annotations

import io
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

_TYPES = [
    pa.binary(),
    pa.binary(32),
    pa.large_string(),
    pa.string_view(),
    pa.bool_(),
    pa.int8(),
    pa.uint64(),
    pa.int64(),
    pa.float16(),
    pa.float32(),
    pa.float64(),
    pa.decimal128(9, 2),
    pa.date32(),
    pa.timestamp("ns"),
    pa.duration("s"),
    pa.time64("us"),
    pa.null(),
    pa.list_(pa.string()),
    pa.list_(pa.float32(), 2),
    pa.struct([("uid", pa.string())]),
    pa.map_(pa.string(), pa.int8()),
    pa.dictionary(pa.int32(), pa.string()),
]
_NAMES = ["", "a.b", "uid ", "UID", "a\nb", "uid.uid", "é", "x y"]
_UIDS = [
    "",
    "f" * 31,
    "f" * 33,
    "g" * 32,
    "é" * 16,
    " " * 32,
    "0x" + "1" * 30,
    "a\n" * 16,
]


def written(table: pa.Table, **options: object) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, **options)
    return file.getvalue()


def rewritten_table(rng: random.Random, content: bytes) -> tuple[bytes, bool]:
    """Rewrite a parquet file; return its bytes, and whether its data are the same as before."""
    table = pq.read_table(io.BytesIO(content))
    name = rng.choice(table.column_names)
    index = table.column_names.index(name)
    choice = rng.randrange(12)
    if choice == 0:
        options = rng.choice(
            [
                {"compression": "zstd"},
                {"row_group_size": 3},
                {"version": "1.0"},
                {"use_dictionary": False},
                {"data_page_version": "2.0"},
                {"store_schema": False},
            ]
        )
        return written(table, **options), True
    if choice == 1:
        more = rng.choice(
            [
                pa.array([[1]] * len(table)),
                pa.array([{"a": {"b": 1}}] * len(table)),
                pa.array([None] * len(table), pa.int32()),
            ]
        )
        return written(table.append_column("another", more)), True
    if choice == 2:
        return written(table.append_column(name, table[rng.choice(table.column_names)])), False
    if choice == 3:
        return written(table.rename_columns([*table.column_names[:-1], rng.choice(_NAMES)])), False
    if choice == 4:
        return written(table.drop_columns([name])), False
    if choice == 5:
        rows = rng.choice(
            [
                [],
                [0],
                [*range(len(table)), 0],
                list(range(len(table)))[::-1],
                list(range(len(table) - 1)),
            ]
        )
        return written(table.take(pa.array(rows, pa.int64()))), False
    if choice in (6, 7):
        return written(table.set_column(index, name, _column(rng, len(table)))), False
    if choice == 8:
        values = table[name].to_pylist()
        values[rng.randrange(len(values))] = None
        return written(table.set_column(index, name, pa.array(values, table[name].type))), False
    if choice == 9 and pa.types.is_floating(table[name].type):
        values = table[name].to_numpy().copy()
        values[rng.randrange(len(values))] = rng.choice([np.nan, np.inf, -np.inf, 1e38, -0.0])
        return written(table.set_column(index, name, pa.array(values))), False
    if choice == 10 and pa.types.is_string(table[name].type):
        raw = [value.encode() for value in table[name].to_pylist()]
        raw[rng.randrange(len(raw))] = rng.choice(
            [b"\xff" * 32, b"\xc3" * 32, b"caf\xe9", b"\0" * 32]
        )
        bad = pa.array(raw, pa.binary()).view(pa.string())
        return written(table.set_column(index, name, bad)), False
    uids = table[name].to_pylist()
    uids[rng.randrange(len(uids))] = rng.choice(_UIDS)
    column = pa.array([str(value) for value in uids])
    return written(table.set_column(index, name, column)), False


def _column(rng: random.Random, length: int) -> pa.Array:
    """Make a column of a random type, with increasing values or nulls."""
    kind = rng.choice(_TYPES)
    nothing = pa.nulls(length, kind)
    if pa.types.is_dictionary(kind):
        codes = pa.array([rng.choice([0, None]) for _ in range(length)], pa.int32())
        return pa.DictionaryArray.from_arrays(codes, pa.array(["f" * 32]))
    if pa.types.is_nested(kind) or pa.types.is_null(kind):
        return nothing
    try:
        if pa.types.is_fixed_size_binary(kind) or kind == pa.binary():
            return pa.array([b"f" * 32] * length, kind)
        if kind in (pa.large_string(), pa.string_view()):
            return pa.array([f"{row:032x}" for row in range(length)], kind)
        return pa.array(range(length)).cast(kind)
    except (pa.ArrowException, TypeError):
        return nothing
