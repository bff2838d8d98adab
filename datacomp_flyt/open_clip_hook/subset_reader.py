"""Samples of the original shards: each as often as a subset says, with its uid in its caption."""

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

_MOST_WITHOUT = 1_000  # shards in a row without an example of the subset

_UID = re.compile("[0-9a-fA-F]{32}")

Reader = Callable[..., Iterator[Sample]]


def usable_uid(sample: Sample) -> str:
    """The uid in a sample's json. Raises Skip where there is none, or what is there is none."""
    uid = stored_uid(sample)
    if not _UID.fullmatch(uid):
        raise Skip(f"{NO_UID} but {uid!r}")
    return uid


def check_whole(sample: Sample, drops_empty_captions: bool) -> None:
    """Raise Skip if a sample lacks a part, so that the trainer will leave it out."""
    stored_image(sample)
    if not caption(sample).strip() and drops_empty_captions:
        raise Skip(NO_CAPTION)


def _trained_on(sample: Sample) -> Sample:
    """The members of a sample that the trainer trains on.

    webdataset decodes every member that it knows. It unpickles a .pyd, and leaves the whole sample
    out for one that it cannot decode.
    """
    image = next((name for name in IMAGES if name in sample), None)
    return {
        name: content
        for name, content in sample.items()
        if name in (image, "txt") or name.startswith("__")
    }


class _Watch:
    """Stops a loader whose shards have no usable sample; the trainer would wait forever.

    Attributes:
        found: whether this pass had a usable sample.
        without: the number of successive shards without a usable sample.
        lacking: the number of whole samples in them that the subset lacks.
        seen, reasons: their members, and why their samples cannot be trained on.
    """

    def __init__(self) -> None:
        self.found, self.without, self.lacking = False, 0, 0
        self.seen, self.reasons = MemberCounts(), Counter[str]()

    def shards(
        self, src: Iterable[Any], nothing: Callable[[str, _Watch], InputError]
    ) -> Iterator[Any]:
        """Yield the shards; raise the error that `nothing` makes after too many in a row."""
        for source in src:
            if self.without == _MOST_WITHOUT:
                raise nothing(f"the last {_MOST_WITHOUT:,} shards", self)
            self.without += 1
            yield source

    def skip(self, sample: Sample, reason: str) -> None:
        """Count a sample that cannot be trained on."""
        self.seen.add(sample)
        self.reasons[reason] += 1

    def lack(self, sample: Sample) -> None:
        """Count a sample that the subset lacks."""
        if "txt" in sample:
            self.lacking += 1
        else:
            self.skip(sample, NO_CAPTION)

    def look(self, sample: Sample, drops_empty_captions: bool) -> None:
        """Decode a sample as the trainer will; note a usable one, and count any other."""
        try:
            check_whole(sample, drops_empty_captions)
            decode(stored_image(sample), lambda image: None)
        except Skip as skip:
            self.skip(sample, skip.reason)
        else:
            self.found, self.without, self.lacking = True, 0, 0
            self.seen, self.reasons = MemberCounts(), Counter()


class StockReader:
    """The trainer's own reader, which a spawned worker finds by name: there it has no stand-in."""

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
    """How often each example of a subset is drawn.

    Attributes:
        counts: int32 [n].
        path: of the subset, for messages.
    """

    counts: NDArray[np.int32]
    path: str

    @property
    def uids(self) -> NDArray[np.void]:
        """The examples as a new `u8,u8` array [n]."""
        uids = np.empty(len(self), UID_DTYPE)
        uids["f0"], uids["f1"] = self.high, self.low
        return uids

    def count(self, uid: str) -> int:
        """How often an example is drawn, 0 where it is not in the subset."""
        row = self.find(uid)
        return int(self.counts[row]) if row >= 0 else 0


def open_subset(path: str | Path) -> SubsetCounts:
    """Read a uid subset. Raises InputError where the resharder would not take it either."""
    uids, counts = read_subset(path)
    high, low = np.ascontiguousarray(uids["f0"]), np.ascontiguousarray(uids["f1"])
    return SubsetCounts(high, low, counts.astype(np.int32), str(path))


class SubsetReader:
    """What the trainer calls in place of its `tarfile_to_samples_nothrow`, in its workers.

    Examples that the subset lacks are dropped before anything is decoded. Copies follow each other
    here; the trainer's shuffle buffer of 5,000 samples, which comes next, spreads them.
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
            subset: None for every example once.
            carries_uids: put the uid before the caption.
            drops_empty_captions: the trainer will, so leave them empty.
        """
        self._read, self._subset, self._carries_uids = read, subset, carries_uids
        self._drops_empty_captions = drops_empty_captions

    def __call__(self, src: Iterable[Any], *args: Any, **kwargs: Any) -> Iterator[Sample]:
        """Samples of the tars that `src` names.

        Raises:
            InputError: no sample of `src`, or of 1,000 shards in a row, can be trained on.
        """
        watch = _Watch()
        for sample in self._read(watch.shards(src, self._nothing), *args, **kwargs):
            try:
                uid = usable_uid(sample)
            except Skip as error:
                where = printable(f"{sample['__url__']}: example {sample['__key__']}")
                logging.warning(f"{where} has {error.reason}. Ignoring.")
                watch.skip(sample, error.reason)
                continue
            number = 1 if self._subset is None else self._subset.count(uid)
            if not number:
                watch.lack(sample)
                continue
            if watch.without:
                watch.look(sample, self._drops_empty_captions)
            sample = _trained_on(sample)
            if self._carries_uids and not self._stays_empty(sample):
                sample["txt"] = with_uid(uid, sample["txt"])
            for _ in range(number):
                yield dict(sample)
        if not watch.found:
            raise self._nothing("all shards", watch)

    def _nothing(self, where: str, watch: _Watch) -> InputError:
        read = f"of {where} that a data loader worker read"
        if not watch.lacking:
            clause = f"no sample {read} can be trained on"
            way_out = "mend the tars, download them again, or give fewer --workers"
            return nothing_usable(clause, watch.seen, watch.reasons, way_out=way_out)
        assert self._subset is not None
        return InputError(
            f"--subset {self._subset.path} has none of the examples {read}: give the shards of "
            "the pool that it was selected from, or fewer --workers"
        )

    def _stays_empty(self, sample: Sample) -> bool:
        """Whether the trainer will leave the example out for its caption."""
        if "txt" not in sample:
            return True
        return self._drops_empty_captions and not sample["txt"].decode(errors="replace").strip()
