"""Damage of bytes, whatever they are: what broken downloads, disks and bad faith leave."""

from __future__ import annotations

import random
from collections.abc import Callable


def truncate(rng: random.Random, content: bytes) -> bytes:
    return content[: rng.choice([0, 1, rng.randrange(len(content) + 1), max(len(content) - 9, 0)])]


def behead(rng: random.Random, content: bytes) -> bytes:
    return content[rng.randrange(len(content) + 1) :]


def flip(rng: random.Random, content: bytes) -> bytes:
    """Some bits, most often in the first or last 200 bytes, where headers and footers are."""
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        if not changed:
            break
        near = min(200, len(changed))
        place = rng.choice(
            [rng.randrange(len(changed)), rng.randrange(near), -1 - rng.randrange(near)]
        )
        changed[place] = rng.choice(
            [changed[place] ^ (1 << rng.randrange(8)), rng.randrange(256), 0, 255, 127]
        )
    return bytes(changed)


def splice(rng: random.Random, content: bytes) -> bytes:
    """A part of it somewhere else."""
    start, end = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    place = rng.randrange(len(content) + 1)
    return (
        content[:place] + content[start:end] + content[place + (end - start) * rng.randrange(2) :]
    )


def repeat(rng: random.Random, content: bytes) -> bytes:
    return content * rng.choice([2, 3, 17])


def zero(rng: random.Random, content: bytes) -> bytes:
    start = rng.randrange(len(content) + 1)
    size = rng.choice([1, 4, 8, 64, 512])
    return content[:start] + bytes(min(size, len(content) - start)) + content[start + size :]


def grow(rng: random.Random, content: bytes) -> bytes:
    more = rng.choice([b"\0", b"\xff", b"\n", b"[", rng.randbytes(7)]) * rng.choice([1, 9, 5000])
    place = rng.choice([0, len(content), rng.randrange(len(content) + 1)])
    return content[:place] + more + content[place:]


def number(rng: random.Random, content: bytes) -> bytes:
    """Four or eight bytes become a number that is likely to be too large."""
    size = rng.choice([4, 8])
    value = rng.choice([2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1]) % 256**size
    place = rng.randrange(max(len(content) - size, 0) + 1)
    return (
        content[:place]
        + value.to_bytes(size, rng.choice(["little", "big"]))
        + content[place + size :]
    )


def nothing(rng: random.Random, content: bytes) -> bytes:
    return content


BYTES: list[Callable[[random.Random, bytes], bytes]] = [
    truncate, behead, flip, flip, flip, splice, repeat, zero, grow, number, nothing,
]  # fmt: skip


def damage(rng: random.Random, content: bytes, others: list[bytes]) -> bytes:
    """The content, damaged one to three times; `others` are files of other kinds."""
    if others and rng.random() < 0.06:
        other = rng.choice(others)
        keep = rng.choice([0, 4, 64, len(other) // 2])
        return rng.choice([other, other[:keep] + content[keep:], content[:keep] + other[keep:]])
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        content = rng.choice(BYTES)(rng, content)
    return content
