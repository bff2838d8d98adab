"""uid subsets: the sorted `u8,u8` .npy file, repeats kept, that DataComp's resharder reads."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt.errors import InputError
from datacomp_flyt.files.open_file import map_npy
from datacomp_flyt.files.output_files import atomic_write
from datacomp_flyt.pool.available import Available
from datacomp_flyt.pool.uids import UID_DTYPE, format_uid
from datacomp_flyt.threads import blocks

_BLOCK = 1 << 20  # examples, or entries, handled at once


def write_subset(
    path: Path, uids: NDArray[np.void], counts: NDArray[np.integer] | None = None
) -> None:
    """Write each uid as often as it was drawn: the bytes of `numpy.save` of the sorted array.

    Args:
        path: a local file; replaced only when all is written.
        uids: `u8,u8` array [M], sorted.
        counts: the number of times that each is drawn [M]; 1 if None.

    Raises:
        InputError: uids are not sorted, or one is there twice.
    """
    if counts is None:
        counts = np.ones(len(uids), np.int32)
    with atomic_write(path) as file:
        header = {
            "descr": np.lib.format.dtype_to_descr(UID_DTYPE),
            "fortran_order": False,
            "shape": (int(counts.sum(dtype=np.int64)),),
        }
        np.lib.format.write_array_header_1_0(file, header)
        for block in blocks(len(uids), _BLOCK):
            check_sorted(uids, block.start, block.stop)
            ends = np.cumsum(counts[block], dtype=np.int64)
            for draws in blocks(int(ends[-1]), _BLOCK):
                times = np.diff(ends.clip(draws.start, draws.stop), prepend=draws.start)
                file.write(np.repeat(uids[block], times).data)


def first_out_of_order(
    uids: NDArray[np.void], start: int = 0, stop: int | None = None
) -> int | None:
    """Return the index of the first uid that is not above the one before it.

    Args:
        uids: `u8,u8` array [M].
        start: the first index to look at.
        stop: the index after the last one; None for M.

    Returns:
        the index; None if all are above the one before.
    """
    stop = len(uids) if stop is None else stop
    for part in blocks(stop - 1, _BLOCK, max(start - 1, 0)):
        high, low = (uids[half][part.start : part.stop + 1] for half in ("f0", "f1"))
        rises = high[1:] > high[:-1]
        if not rises.all():
            rises |= (high[1:] == high[:-1]) & (low[1:] > low[:-1])
        if not rises.all():
            row: int = part.start + int(rises.argmin()) + 1
            return row
    return None


def check_sorted(uids: NDArray[np.void], start: int = 0, stop: int | None = None) -> None:
    """Raise InputError unless uids are sorted and none is there twice; see `first_out_of_order`."""
    if (row := first_out_of_order(uids, start, stop)) is not None:
        fault = "is there twice" if uids[row] == uids[row - 1] else "is below the one before it"
        raise InputError(
            f"uids are not sorted: uid {row}, {format_uid(uids[row])}, {fault}; "
            "`numpy.unique(uids, return_index=True)` gives them in order"
        )


def read_subset(path: str | Path) -> tuple[NDArray[np.void], NDArray[np.integer]]:
    """Read a subset: distinct uids [n], sorted, and the number of draws of each [n].

    Raises:
        InputError: the file is not a subset that the resharder would take.
    """
    subset = _open(path)
    if problems := _check(subset).problems:
        raise InputError(f"{path} is no subset: it {problems[0]}")
    starts = np.flatnonzero(
        np.concatenate(
            [
                [True],
                (subset["f0"][1:] != subset["f0"][:-1]) | (subset["f1"][1:] != subset["f1"][:-1]),
            ]
        )
    )
    return np.asarray(subset[starts]), np.diff(np.append(starts, len(subset)))


@dataclass
class SubsetReport:
    """The result of checking a subset, as texts for a person to read.

    Attributes:
        facts: what the subset holds.
        warnings: what probably is a mistake.
        problems: the reasons why the subset cannot be used; each goes on "it ...".
        not_checked: the checks that were left out.
    """

    facts: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    not_checked: list[str] = field(default_factory=list)

    @property
    def valid(self) -> bool:
        """True if there is no problem."""
        return not self.problems


def check_subset_file(
    path: str | Path,
    *,
    pool_uids: NDArray[np.void] | None = None,
    num_samples: int | None = None,
    available: Available | None = None,
) -> SubsetReport:
    """Check whether the resharder and the leaderboard would accept a subset.

    Args:
        path: the .npy file.
        pool_uids: sorted uids of the pool [M]; None to leave membership unchecked.
        num_samples: the samples that the scale's training sees, which is also the size of its pool;
            None to leave out the checks that need it.
        available: the list of images; None to leave it unchecked whether draws have an image.

    Raises:
        InputError: the file does not exist or is not a .npy array.
    """
    return _check(_open(path), pool_uids, num_samples, available)


def _open(path: str | Path) -> NDArray[Any]:
    try:
        return map_npy(str(path))
    except Exception as error:  # numpy's header parser raises half a dozen kinds
        raise InputError(f"{path} cannot be read as .npy ({error}): write it again") from None


def _check(
    subset: NDArray[Any],
    pool_uids: NDArray[np.void] | None = None,
    num_samples: int | None = None,
    available: Available | None = None,
) -> SubsetReport:
    report = SubsetReport()
    if subset.dtype != UID_DTYPE or subset.ndim != 1:
        kind = f"dtype {subset.dtype}, shape {subset.shape}"
        report.problems.append(f"has {kind}, wanted dtype 'u8,u8' and one dimension")
        return report
    if not len(subset):
        report.problems.append("is empty")
        return report

    high, low = np.ascontiguousarray(subset["f0"]), np.ascontiguousarray(subset["f1"])
    rises = (high[1:] > high[:-1]) | ((high[1:] == high[:-1]) & (low[1:] > low[:-1]))
    same = (high[1:] == high[:-1]) & (low[1:] == low[:-1])
    wrong = np.flatnonzero(~(rises | same))
    if len(wrong):
        report.problems.append(
            f"is not sorted (entry {int(wrong[0]) + 1} is below the one before it): the resharder "
            "would silently find almost none of its uids; sort it with numpy.sort"
        )
        return report

    starts = np.flatnonzero(np.concatenate([[True], ~same]))
    repeats = np.diff(np.append(starts, len(subset)))
    report.facts += describe_counts(repeats)
    if num_samples is not None:
        report.facts.append(describe_training(repeats, num_samples))
    distinct = np.asarray(subset[starts])
    if available is not None:
        _check_images(report, distinct, repeats, available)
    if pool_uids is not None:
        rows = np.searchsorted(np.ascontiguousarray(pool_uids["f0"]), high[starts])
        rows = np.minimum(rows, len(pool_uids) - 1)
        unknown_uids = distinct[pool_uids[rows] != distinct]
        unknown_uids = (
            unknown_uids[~np.isin(unknown_uids, pool_uids)] if len(unknown_uids) else unknown_uids
        )
        if len(unknown_uids):
            report.problems.append(
                f"has {len(unknown_uids):,} uids that are not in the pool (the first is "
                f"{format_uid(unknown_uids[0])}): a submission may only use the pool's examples"
            )
        else:
            share = len(distinct) / len(pool_uids)
            report.facts.append(
                f"all in the pool of {len(pool_uids):,} examples, of which they are {share:.1%}"
            )
        if num_samples is not None and len(pool_uids) > num_samples:
            report.facts.append(
                f"the pool is larger than this scale's {num_samples:,}: is it another scale's?"
            )
    return report


def _check_images(
    report: SubsetReport,
    uids: NDArray[np.void],
    repeats: NDArray[np.integer],
    available: Available,
) -> None:
    """Add the numbers of draws and examples without an image."""
    gone = ~available.contains(uids)
    examples, draws = int(np.count_nonzero(gone)), int(repeats[gone].sum(dtype=np.int64))
    if not examples:
        report.facts.append(f"every draw has an image in {available.name}")
        return
    text = (
        f"{draws:,} of {int(repeats.sum(dtype=np.int64)):,} draws ({examples:,} of {len(uids):,} "
        f"examples) have no image in {available.name}"
    )
    if examples == len(uids):
        report.problems.append(f"has no image at all: {text}; was it selected from another pool?")
    else:
        report.warnings.append(
            f"{text}: neither the resharder nor training will see them; select again with "
            "--available or --shards_dir"
        )


def describe_training(repeats: NDArray[np.integer], num_samples: int) -> str:
    """Describe the expected number of times that training sees an example: it resamples shards.

    Args:
        repeats: the number of draws of each example [n].
        num_samples: samples that training sees.
    """
    passes = num_samples / int(repeats.sum(dtype=np.int64))
    each, most = num_samples / len(repeats), passes * int(repeats.max())
    return (
        f"training sees {num_samples:,} samples: on average each draw {_often(_times(passes))}, "
        f"each example {_often(_times(each))}, the one drawn most {_often(_times(most))}"
        + ("; some draws are never seen" if passes < 1 else "")
    )


def _times(value: float) -> str:
    """Format with three significant digits, or as an integer from 100 on."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _often(times: str) -> str:
    return "once" if times == "1" else f"{times} times"


def describe_counts(repeats: NDArray[np.integer]) -> list[str]:
    """Describe the draws of each example of a subset [n]; examples with 0 are not in it.

    The effective number of examples is (Σc)² / Σc² for counts c: the number of examples if all are
    drawn equally often, and smaller the more the draws are concentrated on few.
    """
    tally: Counter[int] = Counter()
    for block in blocks(len(repeats), _BLOCK):
        values, numbers = np.unique(repeats[block], return_counts=True)
        tally.update(dict(zip(values.tolist(), numbers.tolist(), strict=True)))
    del tally[0]
    if not tally:
        return ["no draws"]
    distinct, most = sum(tally.values()), max(tally)
    draws = sum(times * examples for times, examples in tally.items())
    effective = draws**2 / sum(times**2 * examples for times, examples in tally.items())
    edges = [1, 2, 3, 4, 5, 10, 20, 50, 100, 1000]
    edges = [edge for edge in edges if edge <= most] + [most + 1]
    histogram = [
        sum(examples for times, examples in tally.items() if low <= times < high)
        for low, high in itertools.pairwise(edges)
    ]
    spans = [
        (_often(str(low)) if high == low + 1 else f"{low}-{high - 1} times") + f": {examples:,}"
        for low, high, examples in zip(edges, edges[1:], histogram, strict=False)
        if examples
    ]
    return [
        f"{draws:,} draws of {distinct:,} examples, each at most {_often(f'{most:,}')}",
        f"effective number of examples {effective:,.0f}",
        "drawn " + "; ".join(spans),
    ]
