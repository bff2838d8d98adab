"""Converts score columns of any numeric Arrow type to floats; only decimals are rounded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datacomp_flyt.errors import InputError
from datacomp_flyt.pool.arrow_types import plain_array, value_type

_EXACT = 2**53  # float64 holds every integer up to it
_EXACT_POWERS = 22  # float64 also holds every power of ten up to this one


def is_number(kind: pa.DataType) -> bool:
    """Return whether an Arrow type can hold scores: integers, floats, decimals, or all null."""
    kind = value_type(kind)
    types = pa.types
    return bool(
        types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_decimal(kind)
        or types.is_null(kind)
    )


def fits_float32(kind: pa.DataType) -> bool:
    """Return whether float32 holds every value of the type: float16, float32, or all null."""
    return value_type(kind) in (pa.float16(), pa.float32(), pa.null())


def to_floats(
    array: pa.Array, dtype: np.dtype[Any], path: str, column: str, row: int
) -> NDArray[np.floating]:
    """Convert an array for which `is_number` holds to floats [n]; null becomes NaN.

    Floats and integers are converted exactly, decimals to the nearest float64.

    Args:
        array: the values [n].
        dtype: float64, or float32 if `fits_float32` holds.
        path, column: the file and the column, for messages.
        row: the index of the array's first row in the file, for messages.

    Raises:
        InputError: float64 cannot hold an integer.
    """
    array = plain_array(array)
    if pa.types.is_null(array.type):
        return np.full(len(array), np.nan, dtype)
    if pa.types.is_decimal(array.type):
        return _from_decimals(array)
    if not pa.types.is_integer(array.type):
        return _from_floats(array).astype(dtype, copy=False)
    present = array.fill_null(0) if array.null_count else array
    integers = present.to_numpy(zero_copy_only=False)
    values: NDArray[np.float64] = integers.astype(np.float64)
    rounded = np.flatnonzero(_is_rounded(integers, values))
    if len(rounded):
        raise InputError(
            f"{path} row {row + int(rounded[0])} has {integers[rounded[0]]} in column {column!r}, "
            "which no float64 equals: scores are read as float64, so write the column as one"
        )
    if array.null_count:
        values[array.is_null().to_numpy(zero_copy_only=False)] = np.nan
    return values


def to_float32(values: NDArray[np.floating], name: str) -> NDArray[np.float32]:
    """Round values [n] to float32.

    Args:
        name: the name of the values in messages.

    Raises:
        InputError: a finite value is too large for float32.
    """
    with np.errstate(over="ignore"):
        narrow: NDArray[np.float32] = values.astype(np.float32, copy=False)
    lost = np.isinf(narrow) & np.isfinite(values)
    if lost.any():
        raise InputError(
            f"{name} has {np.count_nonzero(lost):,} scores that float32 cannot hold, "
            f"such as {values[lost][0]:g}: training reads scores as float32, so scale them down"
        )
    return narrow


def _is_rounded(integers: NDArray[np.integer], values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return whether each float [n] differs from the integer [n] that it was converted from."""
    if integers.itemsize < 8 or not (np.abs(values) >= _EXACT).any():
        return np.zeros(len(values), np.bool_)
    too_large = values >= float(np.iinfo(integers.dtype).max)  # rounded up to 2^63 or 2^64
    back = np.where(too_large, 0.0, values).astype(integers.dtype)
    rounded: NDArray[np.bool_] = too_large | (back != integers)
    return rounded


def _from_floats(array: pa.Array) -> NDArray[np.floating]:
    """Return the values of an array of floats; NaN for a null."""
    values = array.buffers()[1]
    if array.null_count or values is None:
        floats: NDArray[np.floating] = array.to_numpy(zero_copy_only=False)
        return floats
    # `to_numpy` would import pandas where it is installed, which takes as long as a column
    return np.frombuffer(values, f"f{array.type.bit_width // 8}")[array.offset :][: len(array)]


def _from_decimals(array: pa.Array) -> NDArray[np.float64]:
    """Round decimals [n] to float64.

    If the unscaled integer and the power of ten are both exact, one division rounds correctly.
    Python converts the others one by one. Arrow's own cast is off by one bit in older versions.
    """
    width, scale = array.type.bit_width // 8, array.type.scale
    valid = array.is_valid().to_numpy(zero_copy_only=False)
    values = np.full(len(array), np.nan)
    if not valid.any():
        return values
    data = np.frombuffer(array.buffers()[1], np.uint8)
    data = data[array.offset * width :][: len(array) * width]
    if width < 8:
        unscaled = data.view(f"<i{width}").astype(np.int64)
        exact = np.ones(len(array), np.bool_)
    else:
        words = data.view("<i8").reshape(len(array), width // 8)
        unscaled = words[:, 0]
        exact = (words[:, 1:] == (unscaled >> 63)[:, None]).all(axis=1)
    exact &= (unscaled >= -_EXACT) & (unscaled <= _EXACT) & (0 <= scale <= _EXACT_POWERS)
    exact &= valid
    values[exact] = unscaled[exact] / 10.0 ** min(max(scale, 0), _EXACT_POWERS)
    for row in np.flatnonzero(valid & ~exact).tolist():
        values[row] = float(array[row].as_py())
    return values
