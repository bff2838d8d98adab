"""A look at a few shards, so that what cannot work is said before training begins."""

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

_TRIED = 20  # shards at most; patterns of shards name missing ones, too
_READ = 3  # of those, that can be read
_EXAMPLES = 1_000  # of the first of these, whose weights are looked up
_WITHOUT_UID = 10  # examples of a shard, after which it is said


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
        drops_empty_captions: whether the trainer leaves out samples with an empty caption.

    Raises:
        InputError: no sample can be trained on, the subset has none of them, or weights are
            missing.
    """
    number = min(_TRIED, len(urls))
    readable: list[str] = []
    look = _Look(read, subset, drops_empty_captions)
    for url in [urls[len(urls) * part // number] for part in range(number)]:
        kept, found = look.kept_uids(url)
        if kept and weights is not None:
            weights.check(kept, url)
        if kept:
            return
        readable += [url] if found else []
        if len(readable) == _READ:
            break
    if readable:
        assert subset is not None
        raise InputError(
            f"--subset {subset.path} has none of the examples of {_names(readable)}: give the "
            "shards of the pool that it was selected from"
        )
    clause = (
        f"no example could be read of {urls[0]} and other shards ({number} of {len(urls):,} were "
        "tried)"
    )
    raise nothing_usable(clause, look.seen, look.reasons)


class _Look:
    """The samples seen in the first shards.

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
        """Some uids of a tar that will be trained on, and whether other samples could be.

        Raises:
            InputError: its samples are whole but for the uid.
        """
        kept: list[str] = []
        found, without = False, 0
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
                    found = True
                    continue
                if not kept:  # one image that can be decoded is enough
                    decode(stored_image(sample), lambda image: None)
                kept.append(uid)
            except Skip as skip:
                self.reasons[skip.reason] += 1
                without += skip.reason != BAD_IMAGE
                if without == _WITHOUT_UID:
                    what = skip.reason if "json" in sample else "no json beside its image"
                    raise InputError(
                        f"{url}: example {sample['__key__']} has {what}, as {without} in that "
                        "shard: the hook joins on the uid, which DataComp's download_upstream.py "
                        "writes"
                    ) from None
            if len(kept) == _EXAMPLES:
                break
        return kept, found


def _names(urls: list[str]) -> str:
    return ", ".join(os.path.basename(url) for url in urls)
