"""Messages between a driver and its own workers, packed as multiprocessing packs them.

They never come from a file or from anyone else.
"""

from __future__ import annotations

from multiprocessing.reduction import ForkingPickler
from typing import Any


def pack(message: Any) -> bytes:
    """Bytes for `unpack` in another process."""
    return bytes(ForkingPickler.dumps(message, 5))


def unpack(packed: bytes) -> Any:
    """What `pack` was given, arrays writable."""
    return ForkingPickler.loads(packed)
