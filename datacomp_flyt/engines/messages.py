"""Pickles messages between a driver and its own workers, as multiprocessing does.

The messages never come from a file or another program, so unpickling them is safe.
"""

from __future__ import annotations

from multiprocessing.reduction import ForkingPickler
from typing import Any


def pack(message: Any) -> bytes:
    """Serialize a message for `unpack` in another process."""
    return bytes(ForkingPickler.dumps(message, 5))


def unpack(packed: bytes) -> Any:
    """Deserialise a message of `pack`; its arrays are writable."""
    return ForkingPickler.loads(packed)
