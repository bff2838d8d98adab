"""Randomness that is named by (seed, uid, draw): the same whatever the order or split of a pool.

An example's random stream is SplitMix64 (Steele, Lea, Flood, OOPSLA 2014) started at a key that
mixes the seed with the 128 bits of its uid. Output number `draw` of that stream is one hash away,
so nothing is stored between draws and no example knows of another.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_GOLDEN = 0x9E3779B97F4A7C15
_WORD = (1 << 64) - 1


def stream_keys(uids: NDArray[np.void], seed: int) -> NDArray[np.uint64]:
    """Key of each example's random stream.

    Args:
        uids: `u8,u8` array [M].
        seed: any integer; taken modulo 2**64.

    Returns:
        uint64 array [M].
    """
    words = uids.view(np.uint64).reshape(-1, 2)
    keys = np.add(words[:, 1], np.uint64((seed * _GOLDEN + _GOLDEN) & _WORD))
    _mix(keys)
    keys ^= words[:, 0]
    keys += np.uint64(_GOLDEN)
    return _mix(keys)


def random_bits(keys: NDArray[np.uint64], draw: int | NDArray[np.uint64]) -> NDArray[np.uint64]:
    """64 random bits: output number `draw` (0-based) of the streams `keys`.

    Args:
        keys: uint64 array [n].
        draw: one draw number for all, or a uint64 array [n].

    Returns:
        uint64 array [n], a new one.
    """
    if isinstance(draw, np.ndarray):
        return _mix(keys + (draw + np.uint64(1)) * np.uint64(_GOLDEN))
    return _mix(keys + np.uint64((draw + 1) * _GOLDEN & _WORD))


def _mix(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser, in place."""
    bits ^= bits >> np.uint64(30)
    bits *= np.uint64(0xBF58476D1CE4E5B9)
    bits ^= bits >> np.uint64(27)
    bits *= np.uint64(0x94D049BB133111EB)
    bits ^= bits >> np.uint64(31)
    return bits
