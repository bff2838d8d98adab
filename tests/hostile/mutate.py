"""Damages files as bad disks, interrupted downloads and wrong paths do."""

from __future__ import annotations

import random
from collections.abc import Callable

WEB_PAGE = b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head></html>\n"


def truncate(rng: random.Random, content: bytes) -> bytes:
    """Cut the file short, as an interrupted download does."""
    return content[: rng.choice([0, 1, rng.randrange(len(content) + 1), max(len(content) - 9, 0)])]


def flip(rng: random.Random, content: bytes) -> bytes:
    """Flip bits, most often in the first or last 200 bytes, where headers and footers are."""
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        if not changed:
            break
        edge = min(200, len(changed))
        index = rng.choice(
            [rng.randrange(len(changed)), rng.randrange(edge), -1 - rng.randrange(edge)]
        )
        changed[index] = rng.choice([changed[index] ^ (1 << rng.randrange(8)), rng.randrange(256)])
    return bytes(changed)


def zero(rng: random.Random, content: bytes) -> bytes:
    """Replace a block by zeros, as when a page of a file is lost."""
    start = rng.randrange(len(content) + 1)
    size = min(rng.choice([8, 64, 512, 4096]), len(content) - start)
    return content[:start] + bytes(size) + content[start + size :]


def append(rng: random.Random, content: bytes) -> bytes:
    """Append bytes, as a download that resumes at a wrong offset does."""
    return content + rng.choice([bytes(512), content, content[rng.randrange(len(content) + 1) :]])


DAMAGES: list[Callable[[random.Random, bytes], bytes]] = [truncate, flip, flip, zero, append]


def damage(rng: random.Random, content: bytes, others: list[bytes]) -> bytes:
    """Damage a file once or twice, or replace it by one of `others`, or by the start of one."""
    if others and rng.random() < 0.1:
        other = rng.choice([*others, WEB_PAGE])
        return rng.choice([other, other[:512] + content[512:]])
    for _ in range(rng.choice([1, 1, 2])):
        content = rng.choice(DAMAGES)(rng, content)
    return content
