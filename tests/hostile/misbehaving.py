"""Faulty readers that the fuzzer must report."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from datacomp_flyt.errors import InputError
from datacomp_flyt.tars.samples import UnreadableShard
from tests.hostile.reader import Reader


def _fine(folder: Path) -> Any:
    return folder.name


def _busy(folder: Path) -> Any:
    while True:
        pass


def _waiting(folder: Path) -> Any:
    time.sleep(600)


def _crashing(folder: Path) -> Any:
    os.abort()


def _greedy(folder: Path) -> Any:
    return np.ones(300 << 20, np.uint8).sum()


def _raising(folder: Path) -> Any:
    raise KeyError("bare")


def _vague(folder: Path) -> Any:
    raise InputError("something is wrong")


def _wordy(folder: Path) -> Any:
    raise UnreadableShard("x" * 2001)


def _wrong(folder: Path) -> Any:
    return "wrong"


READERS = {
    name.strip("_"): Reader(
        lambda folder: None, "", call, lambda found: "no" if found == "wrong" else None
    )
    for name, call in list(globals().items())
    if name.startswith("_") and callable(call) and not name.startswith("__")
}
