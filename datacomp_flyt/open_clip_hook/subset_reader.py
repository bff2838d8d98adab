"""Reads the samples of a subset from the original shards, with the uid in the caption."""

from __future__ import annotations

import importlib
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt.errors import InputError, printable
from datacomp_flyt.open_clip_hook.uid_columns import with_uid
from datacomp_flyt.pool.subset import read_subset
from datacomp_flyt.pool.uid_search import UidIndex
from datacomp_flyt.pool.uids import UID_DTYPE
from datacomp_flyt.tars.nothing_usable import MemberCounts, nothing_usable
from datacomp_flyt.tars.samples import (
    IMAGES,
    NO_CAPTION,
    NO_UID,
    Sample,
    Skip,
    caption,
    decode,
    stored_image,
    stored_uid,
)

_MAX_UNUSABLE = 1_000  # successive shards without a usable sample of the subset

_UID = re.compile("[0-9a-fA-F]{32}")

Reader = Callable[..., Iterator[Sample]]


def usable_uid(sample: Sample) -> str:
    """Return the uid in a sample's json. Raises Skip if it is missing or malformed."""
    uid = stored_uid(sample)
    if not _UID.fullmatch(uid):
        raise Skip(f"{NO_UID} but {uid!r}")
    return uid


def check_whole(sample: Sample, drops_empty_captions: bool) -> None:
    """Raise Skip if a sample lacks a part, so that the trainer will leave it out."""
    stored_image(sample)
    if not caption(sample).strip() and drops_empty_captions:
        raise Skip(NO_CAPTION)


def _image_and_caption(sample: Sample) -> Sample:
    """Return a sample without the members that the trainer does not use.

    webdataset decodes every member of a type that it knows: it unpickles a .pyd, and skips the
    whole sample if it cannot decode one of them.
    """
    image = next((name for name in IMAGES if name in sample), None)
    return {
        name: content
        for name, content in sample.items()
        if name in (image, "txt") or name.startswith("__")
    }


class _UnusableShards:
    """Stops a loader whose shards have no usable sample; the trainer would wait forever.

    Attributes:
        usable_seen: whether this pass had a usable sample.
        num_shards: the number of successive shards without a usable sample.
        num_outside_subset: the number of samples with a caption in these shards that are not in the
            subset.
        seen: the members of the other samples in these shards.
        reasons: counts of these samples by the reason why they cannot be trained on.
    """

    def __init__(self) -> None:
        self.usable_seen, self.num_shards, self.num_outside_subset = False, 0, 0
        self.seen, self.reasons = MemberCounts(), Counter[str]()

    def shards(
        self, src: Iterable[Any], make_error: Callable[[str, _UnusableShards], InputError]
    ) -> Iterator[Any]:
        """Yield the shards; raise the error of `make_error` after too many unusable ones."""
        for source in src:
            if self.num_shards == _MAX_UNUSABLE:
                raise make_error(f"the last {_MAX_UNUSABLE:,} shards", self)
            self.num_shards += 1
            yield source

    def skip(self, sample: Sample, reason: str) -> None:
        """Count a sample that cannot be trained on."""
        self.seen.add(sample)
        self.reasons[reason] += 1

    def skip_outside_subset(self, sample: Sample) -> None:
        """Count a sample that is not in the subset."""
        if "txt" in sample:
            self.num_outside_subset += 1
        else:
            self.skip(sample, NO_CAPTION)

    def try_decoding(self, sample: Sample, drops_empty_captions: bool) -> None:
        """Decode a sample as the trainer will, and count it; a usable one resets the counts."""
        try:
            check_whole(sample, drops_empty_captions)
            decode(stored_image(sample), lambda image: None)
        except Skip as skip:
            self.skip(sample, skip.reason)
        else:
            self.usable_seen, self.num_shards, self.num_outside_subset = True, 0, 0
            self.seen, self.reasons = MemberCounts(), Counter()


class StockReader:
    """The trainer's own reader, pickled by name: a spawned worker imports the original function."""

    def __init__(self, read: Reader) -> None:
        self._read = read

    def __call__(self, src: Iterable[Any], *args: Any, **kwargs: Any) -> Iterator[Sample]:
        return self._read(src, *args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return _stock_reader, (self._read.__module__, self._read.__name__)


def _stock_reader(module: str, name: str) -> StockReader:
    return StockReader(getattr(importlib.import_module(module), name))


@dataclass(frozen=True)
class SubsetCounts(UidIndex):
    """The number of draws of each example in a subset.

    Attributes:
        counts: int32 [n].
        path: the path of the subset, for messages.
    """

    counts: NDArray[np.int32]
    path: str

    @property
    def uids(self) -> NDArray[np.void]:
        """Return the examples as a new `u8,u8` array [n]."""
        uids = np.empty(len(self), UID_DTYPE)
        uids["f0"], uids["f1"] = self.high, self.low
        return uids

    def count(self, uid: str) -> int:
        """Return the number of draws of an example, 0 if it is not in the subset."""
        row = self.find(uid)
        return int(self.counts[row]) if row >= 0 else 0


def open_subset(path: str | Path) -> SubsetCounts:
    """Read a uid subset. Raises InputError if the file is not one that the resharder accepts."""
    uids, counts = read_subset(path)
    high, low = np.ascontiguousarray(uids["f0"]), np.ascontiguousarray(uids["f1"])
    return SubsetCounts(high, low, counts.astype(np.int32), str(path))


class SubsetReader:
    """Replaces the trainer's `tarfile_to_samples_nothrow`, in its loader workers.

    Examples outside the subset are dropped before anything is decoded. The copies of an example
    are successive here; the trainer's shuffle buffer of 5,000 samples, the next stage, spreads
    them.
    """

    def __init__(
        self,
        read: Reader,
        subset: SubsetCounts | None,
        carries_uids: bool,
        drops_empty_captions: bool,
    ) -> None:
        """
        Args:
            read: the trainer's own function.
            subset: the subset; None to read every example once.
            carries_uids: put the uid before the caption.
            drops_empty_captions: whether the trainer drops empty captions, which then get no uid.
        """
        self._read, self._subset, self._carries_uids = read, subset, carries_uids
        self._drops_empty_captions = drops_empty_captions

    def __call__(self, src: Iterable[Any], *args: Any, **kwargs: Any) -> Iterator[Sample]:
        """Yield the samples of the tars in `src`.

        Raises:
            InputError: no sample of `src`, or of 1,000 successive shards, can be trained on.
        """
        unusable = _UnusableShards()
        for sample in self._read(unusable.shards(src, self._nothing_usable), *args, **kwargs):
            try:
                uid = usable_uid(sample)
            except Skip as error:
                example = printable(f"{sample['__url__']}: example {sample['__key__']}")
                logging.warning(f"{example} has {error.reason}. Ignoring.")
                unusable.skip(sample, error.reason)
                continue
            num_draws = 1 if self._subset is None else self._subset.count(uid)
            if not num_draws:
                unusable.skip_outside_subset(sample)
                continue
            if unusable.num_shards:  # 0 after a usable sample of this shard
                unusable.try_decoding(sample, self._drops_empty_captions)
            sample = _image_and_caption(sample)
            if self._carries_uids and not self._is_dropped_by_trainer(sample):
                sample["txt"] = with_uid(uid, sample["txt"])
            for _ in range(num_draws):
                yield dict(sample)
        if not unusable.usable_seen:
            raise self._nothing_usable("all shards", unusable)

    def _nothing_usable(self, shards: str, unusable: _UnusableShards) -> InputError:
        read = f"of {shards} that a data loader worker read"
        if not unusable.num_outside_subset:
            clause = f"no sample {read} can be trained on"
            way_out = "repair the tars, download them again, or give fewer --workers"
            return nothing_usable(clause, unusable.seen, unusable.reasons, way_out=way_out)
        assert self._subset is not None
        return InputError(
            f"--subset {self._subset.path} has none of the examples {read}: give the shards of "
            "the pool that it was selected from, or fewer --workers"
        )

    def _is_dropped_by_trainer(self, sample: Sample) -> bool:
        """Return whether the trainer will skip the example because of its caption."""
        if "txt" not in sample:
            return True
        return self._drops_empty_captions and not sample["txt"].decode(errors="replace").strip()
