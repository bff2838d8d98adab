"""Random bits as a function of (seed, uid, draw), whatever the order or split of a pool.

An example's random stream is SplitMix64 (Steele, Lea, Flood, OOPSLA 2014) started at a key that
mixes the seed with the 128 bits of its uid. Any output of the stream takes one hash, so nothing is
stored between draws and examples are independent.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_GOLDEN = 0x9E3779B97F4A7C15
_WORD = (1 << 64) - 1


def stream_keys(uids: NDArray[np.void], seed: int) -> NDArray[np.uint64]:
    """Compute the key of each example's random stream.

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
    """Return 64 random bits of each stream: its output with the 0-based index `draw`.

    Args:
        keys: uint64 array [n].
        draw: one index for all streams, or a uint64 array [n].

    Returns:
        uint64 array [n], a new one.
    """
    if isinstance(draw, np.ndarray):
        return _mix(keys + (draw + np.uint64(1)) * np.uint64(_GOLDEN))
    return _mix(keys + np.uint64((draw + 1) * _GOLDEN & _WORD))


def _mix(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Apply SplitMix64's finalizer in place."""
    bits ^= bits >> np.uint64(30)
    bits *= np.uint64(0xBF58476D1CE4E5B9)
    bits ^= bits >> np.uint64(27)
    bits *= np.uint64(0x94D049BB133111EB)
    bits ^= bits >> np.uint64(31)
    return bits
