"""A look at a few shards, so that what cannot work is said before training begins."""

from __future__ import annotations

import os
from collections.abc import Iterator

from datacomp_flyt.errors import InputError
from datacomp_flyt.open_clip_hook.log_weights import LogWeights
from datacomp_flyt.open_clip_hook.reading import Reader, SubsetCounts, usable_uid
from datacomp_flyt.pool.tar_samples import Skip

_TRIED = 20  # shards at most; patterns of shards name missing ones, too
_READ = 3  # of those, that can be read
_EXAMPLES = 1_000  # of the first of these, whose weights are looked up
_WITHOUT_UID = 10  # examples of a shard, after which it is said


def check_first_shards(
    read: Reader, urls: list[str], subset: SubsetCounts | None, weights: LogWeights | None
) -> None:
    """Look for uids, for some that the subset has, and for weights of those that will be read.

    Args:
        read: the trainer's own function, from tars to samples.
        urls: of the training data, of which some are looked at from the first to the last.

    Raises:
        InputError: no example has a uid, the subset has none of them, or weights are missing.
    """
    number = min(_TRIED, len(urls))
    readable: list[str] = []
    for url in [urls[len(urls) * part // number] for part in range(number)]:
        kept, found = _kept_uids(read, url, subset)
        if kept and weights is not None:
            weights.check(kept, url)
        if kept:
            return
        readable += [url] if found else []
        if len(readable) == _READ:
            break
    if not readable:
        raise InputError(
            f"no example could be read of {urls[0]} and other shards ({number} of "
            f"{len(urls):,} were tried): give shards that img2dataset or DataComp's "
            "download_upstream.py wrote"
        )
    assert subset is not None
    raise InputError(
        f"--subset {subset.path} has none of the examples of {_names(readable)}: give the shards "
        "of the pool that it was selected from"
    )


def _kept_uids(read: Reader, url: str, subset: SubsetCounts | None) -> tuple[list[str], bool]:
    """Some uids of a tar that will be trained on, and whether it has any uid at all."""
    kept, found = [], False
    for uid in _uids(read, url):
        found = True
        if subset is None or subset.count(uid):
            kept.append(uid)
        if len(kept) == _EXAMPLES:
            break
    return kept, found


def _uids(read: Reader, url: str) -> Iterator[str]:
    without = 0
    for sample in read(iter([{"url": url}])):
        try:
            yield usable_uid(sample)
        except Skip as error:
            without += 1
            if without == _WITHOUT_UID:
                what = error.reason if "json" in sample else "no json beside its image"
                raise InputError(
                    f"{url}: example {sample['__key__']} has {what}, as {without} in that shard: "
                    "the hook joins on the uid, which DataComp's download_upstream.py writes"
                ) from None


def _names(urls: list[str]) -> str:
    return ", ".join(os.path.basename(url) for url in urls)
