"""Checks a few shards, so that unusable training data are refused before training begins."""

from __future__ import annotations

import os
from collections import Counter

from datacomp_flyt.errors import InputError
from datacomp_flyt.open_clip_hook.log_weights import LogWeights
from datacomp_flyt.open_clip_hook.subset_reader import (
    Reader,
    SubsetCounts,
    check_whole,
    usable_uid,
)
from datacomp_flyt.tars.nothing_usable import MemberCounts, nothing_usable
from datacomp_flyt.tars.samples import BAD_IMAGE, Skip, decode, stored_image

_MAX_SHARDS = 20  # shards to try; patterns of shards may also name missing ones
_MAX_READABLE = 3  # readable shards to search for an example of the subset
_MAX_EXAMPLES = 1_000  # examples of a shard whose weights are looked up
_MAX_WITHOUT_UID = 10  # examples without a uid in a shard before it is refused


def check_first_shards(
    read: Reader,
    urls: list[str],
    subset: SubsetCounts | None,
    weights: LogWeights | None,
    drops_empty_captions: bool = False,
) -> None:
    """Check that the first shards have usable samples, also of the subset, and their weights.

    Args:
        read: the trainer's own function, from tars to samples.
        urls: the shards of the training data; some of them are read, spread over the list.
        subset: the subset that is trained on; None for all examples.
        weights: the weights of the examples; None to train without weights.
        drops_empty_captions: whether the trainer skips samples with an empty caption.

    Raises:
        InputError: no sample can be trained on, the subset has none of them, or weights are
            missing.
    """
    num_tried = min(_MAX_SHARDS, len(urls))
    readable: list[str] = []
    first_shards = _FirstShards(read, subset, drops_empty_captions)
    for url in [urls[len(urls) * part // num_tried] for part in range(num_tried)]:
        kept, has_others = first_shards.kept_uids(url)
        if kept and weights is not None:
            weights.check(kept, url)
        if kept:
            return
        readable += [url] if has_others else []
        if len(readable) == _MAX_READABLE:
            break
    if readable:
        assert subset is not None
        raise InputError(
            f"--subset {subset.path} has none of the examples of {_names(readable)}: give the "
            "shards of the pool that it was selected from"
        )
    clause = (
        f"no example could be read of {urls[0]} and other shards ({num_tried} of {len(urls):,} "
        "were tried)"
    )
    raise nothing_usable(clause, first_shards.seen, first_shards.reasons)


class _FirstShards:
    """The samples of the first shards.

    Attributes:
        seen: the members of their samples.
        reasons: counts of the samples that cannot be trained on, by reason.
    """

    def __init__(
        self, read: Reader, subset: SubsetCounts | None, drops_empty_captions: bool
    ) -> None:
        self._read, self._subset = read, subset
        self._drops_empty_captions = drops_empty_captions
        self.seen, self.reasons = MemberCounts(), Counter[str]()

    def kept_uids(self, url: str) -> tuple[list[str], bool]:
        """Return uids of a tar that will be trained on, and whether it has others.

        Raises:
            InputError: samples of the tar lack nothing but the uid.
        """
        kept: list[str] = []
        has_others, num_without_uid = False, 0
        for sample in self._read(iter([{"url": url}])):
            self.seen.add(sample)
            try:
                check_whole(sample, self._drops_empty_captions)
            except Skip as skip:
                self.reasons[skip.reason] += 1
                continue
            try:
                uid = usable_uid(sample)
                if self._subset is not None and not self._subset.count(uid):
                    has_others = True
                    continue
                if not kept:  # one image that can be decoded is enough
                    decode(stored_image(sample), lambda image: None)
                kept.append(uid)
            except Skip as skip:
                self.reasons[skip.reason] += 1
                num_without_uid += skip.reason != BAD_IMAGE
                if num_without_uid == _MAX_WITHOUT_UID:
                    reason = skip.reason if "json" in sample else "no json beside its image"
                    raise InputError(
                        f"{url}: example {sample['__key__']} has {reason}, as have "
                        f"{num_without_uid} examples of that shard: the hook joins on the uid, "
                        "which DataComp's download_upstream.py writes"
                    ) from None
            if len(kept) == _MAX_EXAMPLES:
                break
        return kept, has_others


def _names(urls: list[str]) -> str:
    return ", ".join(os.path.basename(url) for url in urls)
