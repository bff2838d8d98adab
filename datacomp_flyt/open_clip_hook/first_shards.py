"""A look at the first shards, so that what cannot work is said before training begins."""

from __future__ import annotations

import os
from collections.abc import Iterator

from datacomp_flyt.errors import InputError
from datacomp_flyt.open_clip_hook.log_weights import LogWeights
from datacomp_flyt.open_clip_hook.reading import Reader, SubsetCounts
from datacomp_flyt.pool.tar_samples import Skip, stored_uid

_SHARDS = 3  # that are looked at, of those that can be read
_EXAMPLES = 1_000  # of the first of these, whose weights are looked up


def check_first_shards(
    read: Reader, urls: list[str], subset: SubsetCounts | None, weights: LogWeights | None
) -> None:
    """Look for uids, for some that the subset has, and for weights of all of them.

    Args:
        read: the trainer's own function, from tars to samples.
        urls: of the training data.

    Raises:
        InputError: no example has a uid, the subset has none of them, or weights are missing.
    """
    uids: list[str] = []
    examined = 0
    for url in urls:
        found = False
        for uid in _uids(read, url):
            found = True
            if examined == 0 and len(uids) < _EXAMPLES:
                uids.append(uid)
            if subset is not None and subset.count(uid):
                subset = None
            if subset is None and len(uids) >= _EXAMPLES:
                break
        if found and examined == 0 and weights is not None:
            weights.check(uids, url)
        examined += found
        if examined and (subset is None or examined == _SHARDS):
            break
    if not examined:
        raise InputError(
            f"no example of {urls[0]} and the other {len(urls) - 1:,} shards could be read: give "
            "shards that img2dataset or DataComp's download_upstream.py wrote"
        )
    if subset is not None:
        raise InputError(
            f"--subset {subset.path} has none of the examples of {_names(urls[:examined])}: give "
            "the shards of the pool that it was selected from"
        )


def _uids(read: Reader, url: str) -> Iterator[str]:
    """uids of one tar, which may be missing: patterns of shards name such, too."""
    without = 0
    for sample in read(iter([{"url": url}])):
        try:
            yield stored_uid(sample)
        except Skip as error:
            without += 1
            if without == 10 and "json" not in sample:
                raise InputError(
                    f"examples of {url} have no json beside the image, and {error.reason} then: "
                    "the hook joins on the uid, which DataComp's download_upstream.py writes"
                ) from None
            if without == 10:
                raise InputError(
                    f"{url}: example {sample['__key__']} has {error.reason}, as ten in that shard: "
                    "the hook joins on the uid, which DataComp's download_upstream.py writes"
                ) from None


def _names(urls: list[str]) -> str:
    return ", ".join(os.path.basename(url) for url in urls)
