"""Reads image-text pairs of a tar shard in batches, and decodes the images on threads."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar

from PIL import Image

from datacomp_flyt.errors import ReadError, unreadable
from datacomp_flyt.tars.nothing_usable import IMAGE, PAIR, MemberCounts, nothing_usable
from datacomp_flyt.tars.samples import (
    Sample,
    Skip,
    UnreadableShard,
    caption,
    decode,
    read_tar,
    stored_image,
    stored_uid,
)
from datacomp_flyt.tars.shard_names import shard_name
from datacomp_flyt.tars.shards import is_stream

T = TypeVar("T")
R = TypeVar("R")

DUPLICATE = "uid was in the shard before"
BAD_UID = "uid is not 32 hexadecimal characters"

_UID = re.compile("[0-9a-fA-F]{32}")


@dataclass(frozen=True)
class Pair(Generic[T]):
    """A sample with a uid.

    Attributes:
        uid: 32 lower-case hexadecimal characters.
        sample: the members of the sample.
        image: the decoded and transformed image; None if image or caption cannot be used.
        text: the caption.
    """

    uid: str
    sample: Sample
    image: T | None
    text: str


def read_pairs(
    shard: str,
    transform: Callable[[Image.Image], T],
    batch_size: int,
    threads: int,
    counts: Counter[str],
    make_uids: bool = False,
) -> Generator[list[Pair[T]], None, None]:
    """Yield the samples of a tar that have a uid, the first of each uid, in batches.

    Args:
        shard: the path or address of the tar.
        transform: the transform of the decoded RGB images.
        batch_size: the number of samples of each batch but the last.
        threads: the number of threads that decode images; it does not change the result.
        counts: a counter of the samples that are left out or unusable, by reason.
        make_uids: for tars of other datasets: the uid of a sample is the MD5 of shard and key, and
            a missing caption is empty.

    Raises:
        InputError: the tar is damaged; or, after its last batch, none of its samples can be used.
            A tar without members is valid: all downloads of its shard may have failed.
    """

    def examine(item: tuple[str, Sample]) -> tuple[Pair[T], str | None]:
        uid, sample = item
        try:
            text = "" if make_uids and "txt" not in sample else caption(sample)
            return Pair(uid, sample, decode(stored_image(sample), transform), text), None
        except Skip as skip:
            return Pair(uid, sample, None, ""), skip.reason

    seen, usable = MemberCounts(), False
    samples = _samples(shard, counts, make_uids, seen)
    for batch in _map_batches(examine, samples, batch_size, threads):
        counts.update(reason for _, reason in batch if reason is not None)
        usable |= any(pair.image is not None for pair, _ in batch)
        yield [pair for pair, _ in batch]
    if seen.members and not usable:
        clause = f"{shard} has no sample that can be used"
        raise nothing_usable(clause, seen, counts, IMAGE if make_uids else PAIR)


def _samples(
    shard: str, counts: Counter[str], make_uids: bool, members: MemberCounts
) -> Iterator[tuple[str, Sample]]:
    """Yield the samples that have a uid, and the uid; the first sample of each uid."""
    seen: set[str] = set()
    try:
        with contextlib.closing(read_tar(shard, members)) as samples:
            for sample in samples:
                try:
                    uid = _made_uid(shard, sample) if make_uids else stored_uid(sample).lower()
                except Skip as skip:
                    counts[skip.reason] += 1
                    continue
                if uid in seen or not _UID.fullmatch(uid):
                    counts[DUPLICATE if uid in seen else BAD_UID] += 1
                    continue
                seen.add(uid)
                yield uid, sample
    except UnreadableShard as error:
        sentence = f"{shard} cannot be read as a tar ({error}): download it again"
        if is_stream(shard):  # a lost connection looks like a truncated tar
            raise ReadError(sentence) from None
        raise unreadable(sentence, error.__cause__ or error) from None


def _made_uid(shard: str, sample: Sample) -> str:
    name = f"{shard_name(shard)}/{sample['__key__']}"
    return hashlib.md5(name.encode(), usedforsecurity=False).hexdigest()


def _map_batches(
    function: Callable[[T], R], items: Iterable[T], size: int, threads: int
) -> Iterator[list[R]]:
    """Map a function over items, in lists of `size`; threads work one list ahead."""
    items = iter(items)
    batches = iter(lambda: list(islice(items, size)), [])
    if threads == 1:
        for batch in batches:
            yield list(map(function, batch))
        return
    with ThreadPoolExecutor(threads) as executor:
        waiting: deque[Any] = deque()
        for batch in batches:
            waiting.append(executor.map(function, batch))
            if len(waiting) > 1:
                yield list(waiting.popleft())
        while waiting:
            yield list(waiting.popleft())
