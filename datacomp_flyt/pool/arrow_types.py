"""Decodes Arrow types that wrap another type: dictionary, run-end-encoded, extension, view."""

from __future__ import annotations

import pyarrow as pa


def is_kind(name: str, kind: pa.DataType) -> bool:
    """Return `pyarrow.types.is_NAME(kind)`; False if this pyarrow does not have such types."""
    test = getattr(pa.types, f"is_{name}", None)
    return bool(test is not None and test(kind))


def value_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of the values of a dictionary-encoded or run-end-encoded type."""
    while pa.types.is_dictionary(kind) or is_kind("run_end_encoded", kind):
        kind = kind.value_type
    return kind


def plain_array(array: pa.Array) -> pa.Array:
    """Decode an array to its storage type, in one buffer; a plain array is returned unchanged."""
    if pa.types.is_dictionary(array.type):
        return plain_array(array.dictionary).take(array.indices)
    if is_kind("run_end_encoded", array.type):
        import pyarrow.compute as pc  # takes as long to import as thousands of rows to read

        return plain_array(pc.run_end_decode(array))
    if isinstance(array, pa.ExtensionArray):
        return plain_array(array.storage)
    if is_kind("string_view", array.type):
        return array.cast(pa.large_string())
    if is_kind("binary_view", array.type):
        return array.cast(pa.large_binary())
    return array


def plain_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Decode the chunks of a column, see `plain_array`."""
    chunks = [plain_array(chunk) for chunk in column.chunks]
    return pa.chunked_array(chunks) if chunks else column
