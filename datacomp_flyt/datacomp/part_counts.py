"""Counts the draws of a subset in the parts that it was resharded into, and reports the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt.datacomp.resharder_run import ResharderRun
from datacomp_flyt.errors import InputError
from datacomp_flyt.pool.uid_search import find_uids
from datacomp_flyt.pool.uids import format_uid


@dataclass(frozen=True)
class MissingExamples:
    """Examples of a subset that are in no part.

    Attributes:
        uids: `u8,u8` array [n], sorted.
        draws: the draws of all of them together.
    """

    uids: NDArray[np.void]
    draws: int

    def __str__(self) -> str:
        return (
            f"{self.draws:,} draws of {len(self.uids):,} examples are in no part (the first is "
            f"{format_uid(self.uids[0])})"
        )


@dataclass(frozen=True)
class PartsReport:
    """The result of `check_parts`.

    Attributes:
        facts: the draws of each part and of all parts, for a person to read.
        problems: the reasons why the parts do not add up; none if they do.
        missing: the examples of the subset that are in no part. They are a problem unless the
            pool is known to have no image of them.
    """

    facts: list[str]
    problems: list[str]
    missing: MissingExamples

    @property
    def valid(self) -> bool:
        """True if the parts add up to the subset."""
        return not self.problems


class PartCounts:
    """Counts how often each example of a subset is in the parts, and in which tars.

    Attributes:
        tars: the tars of all parts, one part after the other.
    """

    def __init__(
        self,
        subset: Path,
        uids: NDArray[np.void],
        repeats: NDArray[np.integer],
        parts: Sequence[ResharderRun],
    ) -> None:
        self._subset, self._uids, self._repeats, self._parts = subset, uids, repeats, parts
        self._high, self._low = uids["f0"].copy(), uids["f1"].copy()
        self.tars = [tar for part in parts for tar in part.tars]
        part_of_tar = np.repeat(np.arange(len(parts)), [len(part.tars) for part in parts])
        self._part_of_tar = np.append(part_of_tar, -1).astype(np.int32)  # -1: part of no tar
        self._counts = np.zeros(len(uids), np.int32)
        # the first and the last tar that has draws of each example
        self._first = np.full(len(uids), len(self.tars), np.int32)
        self._last = np.full(len(uids), -1, np.int32)
        self._draws_of_tar = np.zeros(len(self.tars), np.int64)

    def add(self, tar_index: int, uids: NDArray[np.void], draws: NDArray[np.int64]) -> None:
        """Count the samples of a tar.

        Args:
            tar_index: the index of the tar in `tars`.
            uids: the uid of each sample [n].
            draws: the index of each sample among the draws of its uid [n].

        Raises:
            InputError: the subset has no such draw.
        """
        rows = find_uids(self._high, self._low, uids)
        wrong = np.flatnonzero((rows < 0) | (draws >= self._repeats[rows]))
        if len(wrong):
            uid, draw = format_uid(uids[wrong[0]]), int(draws[wrong[0]]) + 1
            raise InputError(
                f"{self.tars[tar_index]} has draw {draw} of {uid}, which {self._subset} does not: "
                "it is of another subset, so run the resharder of this part again"
            )
        np.add.at(self._counts, rows, 1)
        self._first[rows] = np.minimum(self._first[rows], tar_index)
        self._last[rows] = np.maximum(self._last[rows], tar_index)
        self._draws_of_tar[tar_index] = len(uids)

    def report(self) -> PartsReport:
        """Report the draws of each part, and what does not add up.

        Missing examples are in the report, but not yet among its problems.
        """
        missing = np.flatnonzero(self._counts == 0)
        report = PartsReport(
            [], [], MissingExamples(self._uids[missing], int(self._repeats[missing].sum()))
        )
        self._report_parts(report)
        self._report_examples(report)
        total = int(self._repeats.sum(dtype=np.int64))
        present = int(self._counts.sum(dtype=np.int64))
        report.facts.append(f"{present:,} of {total:,} draws are in the parts")
        return report

    def _report_parts(self, report: PartsReport) -> None:
        """Compare the draws of each part with its meta.json."""
        for part_index, part in enumerate(self._parts):
            draws = int(self._draws_of_tar[self._part_of_tar[:-1] == part_index].sum())
            report.facts.append(
                f"{part.folder}: {draws:,} draws in {len(part.tars):,} tars, of {part.pool_shards}"
            )
            if draws != int(part.meta["output_count"]):
                report.problems.append(
                    f"{part.folder} has {draws:,} draws and its meta.json says "
                    f"{int(part.meta['output_count']):,}: run the resharder of this part again"
                )

    def _report_examples(self, report: PartsReport) -> None:
        """Report examples in more than one part, and those with too many or too few draws."""
        in_many_parts = self._part_of_tar[self._first] != self._part_of_tar[self._last]
        shared = np.flatnonzero(in_many_parts)
        if len(shared):
            one, other = (
                f"{self.tars[tar]} (made of {self._parts[self._part_of_tar[tar]].pool_shards})"
                for tar in (self._first[shared[0]], self._last[shared[0]])
            )
            report.problems.append(
                f"{len(shared):,} examples are in more than one part, the first is "
                f"{format_uid(self._uids[shared[0]])} in {one} and {other}: a shard was processed "
                "twice, or the pool has a uid twice"
            )
        in_one_part = (self._counts > 0) & ~in_many_parts
        for compare, text in (
            (np.greater, "too often, so the pool has them twice"),
            (np.less, "too seldom, so run the resharder of that part again"),
        ):
            if len(wrong := np.flatnonzero(in_one_part & compare(self._counts, self._repeats))):
                row = wrong[0]
                report.problems.append(
                    f"{len(wrong):,} examples are there {text}: the first is "
                    f"{format_uid(self._uids[row])} in {self.tars[self._first[row]]} with "
                    f"{int(self._counts[row])} draws of {int(self._repeats[row])}"
                )
