"""Checks of arguments that functions and the command line share. Messages name the flag.

Importing this module is cheap.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Sequence
from numbers import Real
from typing import SupportsIndex, TypeVar

from datacomp_flyt.errors import InputError

S = TypeVar("S")


def check_integer(value: SupportsIndex, flag: str, least: int | None = None) -> int:
    """Return an integer of any integer type as an `int`.

    Args:
        value: the value.
        flag: its flag, with dashes.
        least: the least value that is allowed; None to allow all.

    Raises:
        InputError: it is no integer, or below `least`.
    """
    wanted = "an integer" if least is None else f"an integer, {least} or more"
    try:
        integer = operator.index(value)
    except TypeError:
        raise InputError(f"{flag} is {value!r}, wanted {wanted}") from None
    if least is not None and integer < least:
        raise InputError(f"{flag} is {integer}, wanted {least} or more")
    return integer


def check_number(value: object, flag: str) -> float:
    """Return a number of any real type as a `float`; raise InputError if it is none."""
    if not isinstance(value, Real):
        raise InputError(f"{flag} is {value!r}, wanted a number")
    return float(value)


def check_list(values: Sequence[S], flag: str) -> Sequence[S]:
    """Return a list; raise InputError if it is a path, or a string, which is a list of letters."""
    if isinstance(values, str | os.PathLike):
        text = str(values)
        raise InputError(f"{flag} is {text!r}, wanted a list: [{text!r}]")
    return values
