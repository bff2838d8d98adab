"""Shows pictures and captions of examples that a selection draws often, sometimes or never.

These are figures 5 to 7 of FLYT. The tar of a uid is known only if img2dataset's parquet lies
beside the tar. Therefore the examples come from a few tars that the seed chooses, and the page says
so. Of the tars with a parquet, only those that hold a shown example are opened.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datacomp_flyt.errors import InputError
from datacomp_flyt.pool.uids import encode_uids
from datacomp_flyt.report.scores import Ranking
from datacomp_flyt.report.selections import Selection
from datacomp_flyt.tars.nothing_usable import MemberCounts, nothing_usable
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
from datacomp_flyt.tars.uids import uids_of_tar
from datacomp_flyt.threads import map_threads

THUMBNAIL = 160
"""The largest size of a thumbnail's longer side, in pixels."""

_MISSING = "not in its tar"


@dataclass(frozen=True)
class Candidates:
    """Examples that can be shown.

    Attributes:
        uids: `u8,u8` [n], sorted, without repeats.
        tar_of: the index in `tars` of the tar that holds each uid [n].
        tars: the chosen tars.
        all_tars: the number of the pool's tars.
        opened: the tars that were opened to read their uids.
        unreadable: the problems of tars that could not be read to their end.
    """

    uids: NDArray[np.void]
    tar_of: NDArray[np.int64]
    tars: list[str]
    all_tars: int
    opened: list[str]
    unreadable: list[str]


@dataclass(frozen=True)
class Picture:
    """An image as a data URI, or the problem if there is none; and the caption."""

    image: str | None
    width: int
    height: int
    caption: str
    problem: str | None = None


def find_candidates(
    tars: Sequence[str], max_tars: int, seed: int, num_workers: int, flag: str
) -> Candidates:
    """Find the examples of at most `max_tars` tars.

    Args:
        tars: shards, as `list_shards` returns them.
        max_tars: the number of tars to choose.
        seed: chooses the tars by their names, in any order.
        num_workers: threads.
        flag: the flag that named them, for the message.

    Raises:
        InputError: none of the chosen tars can be read, or none has an example with a uid.
    """

    def hash_of_name(tar: str) -> bytes:
        return hashlib.sha256(f"{seed} {shard_name(tar)}".encode()).digest()

    chosen = sorted(sorted(tars, key=hash_of_name)[:max_tars])
    contents = map_threads(
        lambda tar: uids_of_tar(tar, with_image=False),  # the page shows a missing picture as such
        chosen,
        num_workers,
        "finding pictures",
        "tar",
    )
    pairs = list(zip(chosen, contents, strict=True))
    problems = [f"{tar}: {content.problem}" for tar, content in pairs if content.problem]
    for invalid in filter(None, (content.invalid for content in contents)):
        raise InputError(f"{flag} holds the uid {invalid!r}: a uid is 32 hex digits")
    uids = np.concatenate([content.uids for content in contents])
    if not len(uids):
        problem = f" ({problems[0]})" if problems else ""
        raise InputError(f"{flag} has no example with a uid in the tars looked into{problem}")
    tar_of = np.repeat(np.arange(len(chosen)), [len(content.uids) for content in contents])
    uids, first = np.unique(uids, return_index=True)
    opened = [tar for tar, content in pairs if content.opened]
    return Candidates(uids, tar_of[first], chosen, len(tars), opened, problems)


def choose_examples(
    counts: NDArray[np.integer], scores: NDArray[np.floating], num_examples: int
) -> dict[str, NDArray[np.intp]]:
    """Choose the candidates to show for a selection.

    Args:
        counts: the number of draws of each candidate [n], in the order of uids.
        scores: the score of each candidate [n]; one without a score ranks lowest.
        num_examples: the largest number of examples in a group.

    Returns:
        indices of candidates by group: `top`, drawn most often, ties by the higher score; `middle`,
        around the median of the drawn ones; `rejected`, never drawn, at equal steps from the
        highest score to the lowest. No example is in two groups.
    """
    ranked = np.lexsort((-np.nan_to_num(scores, nan=-np.inf), -counts))
    drawn = ranked[counts[ranked] > 0]
    never = ranked[len(drawn) :]
    rest = drawn[num_examples:]
    middle = len(drawn) // 2 - num_examples // 2 - num_examples
    start = min(max(middle, 0), max(len(rest) - num_examples, 0))
    steps = np.unique(np.linspace(0, max(len(never) - 1, 0), num_examples).round().astype(np.intp))
    return {
        "top": drawn[:num_examples],
        "middle": rest[start : start + num_examples],
        "rejected": never[steps] if len(never) else never,
    }


def read_pictures(
    candidates: Candidates, indices: NDArray[np.intp], num_workers: int
) -> tuple[dict[int, Picture], list[str]]:
    """Read thumbnails and captions of candidates.

    Args:
        candidates: the candidates.
        indices: the indices of those to read; repeats are read once.
        num_workers: threads.

    Returns:
        the pictures by index, and the tars that were opened for them.

    Raises:
        InputError: no candidate has a picture.
    """
    indices = np.unique(indices)
    uids = encode_uids(candidates.uids[indices]).to_pylist()
    by_tar: dict[int, dict[str, int]] = {}
    for uid, index in zip(uids, indices.tolist(), strict=True):
        by_tar.setdefault(int(candidates.tar_of[index]), {})[uid] = index

    def read(tar: int) -> dict[int, Picture]:
        return _read_tar(candidates.tars[tar], by_tar[tar])

    tars = sorted(by_tar)
    pictures: dict[int, Picture] = {}
    for part in map_threads(read, tars, num_workers, "reading pictures", "tar"):
        pictures |= part
    if pictures and all(picture.image is None for picture in pictures.values()):
        raise _no_picture(pictures, candidates.tars[tars[0]])
    return pictures, [candidates.tars[tar] for tar in tars]


def examples_section(
    candidates: Candidates,
    rows: NDArray[np.signedinteger],
    ranking: Ranking,
    selections: Sequence[Selection],
    num_examples: int,
    num_workers: int,
) -> dict[str, Any]:
    """Make the section of top, middle and rejected examples of each selection.

    Args:
        candidates: the examples that can be shown [c].
        rows: the row of each candidate in `ranking.values` [c]; -1 for one that was not read.
        ranking: the score that orders examples.
        selections: the selections.
        num_examples: the largest number of examples in a group.
        num_workers: threads.
    """
    inside = np.flatnonzero(rows >= 0)
    scores = ranking.values[rows[inside]]
    chosen = []
    for selection in selections:
        counts = selection.counts_of(candidates.uids[inside])
        groups = choose_examples(counts, scores, num_examples)
        chosen.append((selection.name, counts, groups))
    shown = [inside[group] for _, _, groups in chosen for group in groups.values()]
    pictures, opened = read_pictures(candidates, np.concatenate(shown), num_workers)

    def card(row: int, counts: NDArray[np.integer]) -> dict[str, Any]:
        score = float(scores[row])
        return {
            "picture": pictures[int(inside[row])],
            "count": int(counts[row]),
            "score": score if np.isfinite(score) else None,
        }

    return {
        "selections": [
            {
                "name": name,
                "groups": {
                    group: [card(row, counts) for row in rows.tolist()]
                    for group, rows in groups.items()
                },
            }
            for name, counts, groups in chosen
        ],
        "score": ranking.name,
        "candidates": len(inside),
        "tars": len(candidates.tars),
        "all_tars": candidates.all_tars,
        "opened": sorted({*opened, *candidates.opened}),
        "unreadable": candidates.unreadable,
    }


def _read_tar(tar: str, index_of: dict[str, int]) -> dict[int, Picture]:
    """Read the pictures of a tar, given as index by uid."""
    pictures: dict[int, Picture] = {}
    problem = _MISSING
    samples = read_tar(tar)
    try:
        for sample in samples:
            try:
                uid = stored_uid(sample)
            except Skip:
                continue
            if uid in index_of and index_of[uid] not in pictures:
                pictures[index_of[uid]] = _picture(sample)
            if len(pictures) == len(index_of):
                break  # the rest of the tar is not needed
    except UnreadableShard as error:
        problem = f"tar cannot be read ({error})"
    finally:
        samples.close()
    for index in index_of.values():
        pictures.setdefault(index, Picture(None, 0, 0, "", problem))
    return pictures


def _no_picture(pictures: Mapping[int, Picture], tar: str) -> InputError:
    seen, reasons = MemberCounts(), Counter(str(picture.problem) for picture in pictures.values())
    with contextlib.suppress(UnreadableShard):
        for _ in read_tar(tar, seen):
            pass
    return nothing_usable(f"no example to be shown has a picture in {tar}", seen, reasons)


def _picture(sample: Sample) -> Picture:
    try:
        text = caption(sample)
    except Skip:
        text = ""
    try:
        image = decode(stored_image(sample), _thumbnail)
    except Skip as skip:
        return Picture(None, 0, 0, text, skip.reason)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    data = base64.b64encode(buffer.getvalue()).decode()
    return Picture(f"data:image/jpeg;base64,{data}", image.width, image.height, text)


def _thumbnail(image: Image.Image) -> Image.Image:
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return image
