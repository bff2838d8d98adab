"""Pictures and captions of examples that a selection takes most, takes, or never takes.

Figures 5 to 7 of FLYT. Which tar holds a uid is known only where img2dataset's own parquet lies
beside the tar. So the examples come from a few tars chosen by seed, and the page says so; of those
with a parquet, only the tars that hold a shown example are opened.
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
"""Pixels, at most, of a thumbnail's longer side."""

_MISSING = "not in its tar"


@dataclass(frozen=True)
class Candidates:
    """Examples that can be shown.

    Attributes:
        uids: `u8,u8` [n], sorted, no uid twice.
        tar_of: which of `tars` holds each [n].
        tars: the chosen tars.
        all_tars: how many there are.
        opened: which tars were opened to get the uids.
        unreadable: what was wrong with tars that could not be read to their end.
    """

    uids: NDArray[np.void]
    tar_of: NDArray[np.int64]
    tars: list[str]
    all_tars: int
    opened: list[str]
    unreadable: list[str]


@dataclass(frozen=True)
class Picture:
    """An image as a data URI, or why there is none; and the caption."""

    image: str | None
    width: int
    height: int
    caption: str
    problem: str | None = None


def find_candidates(
    tars: Sequence[str], max_tars: int, seed: int, num_workers: int, flag: str
) -> Candidates:
    """The examples of at most `max_tars` tars.

    Args:
        tars: shards, as `list_shards` returns them.
        seed: chooses the tars by their names, whatever their order.
        flag: the flag that named them, for the message.

    Raises:
        InputError: none of the chosen tars can be read, or none has an example with a uid.
    """

    def lot(tar: str) -> bytes:
        return hashlib.sha256(f"{seed} {shard_name(tar)}".encode()).digest()

    chosen = sorted(sorted(tars, key=lot)[:max_tars])
    found = map_threads(
        lambda tar: uids_of_tar(tar, with_image=False),  # a missing picture is shown as missing
        chosen,
        num_workers,
        "finding pictures",
        "tar",
    )
    problems = [f"{tar}: {of.problem}" for tar, of in zip(chosen, found, strict=True) if of.problem]
    for invalid in filter(None, (of.invalid for of in found)):
        raise InputError(f"{flag} holds the uid {invalid!r}: a uid is 32 hex digits")
    uids = np.concatenate([of.uids for of in found])
    if not len(uids):
        said = f" ({problems[0]})" if problems else ""
        raise InputError(f"{flag} has no example with a uid in the tars looked into{said}")
    tar_of = np.repeat(np.arange(len(chosen)), [len(of.uids) for of in found])
    uids, first = np.unique(uids, return_index=True)
    opened = [tar for tar, of in zip(chosen, found, strict=True) if of.opened]
    return Candidates(uids, tar_of[first], chosen, len(tars), opened, problems)


def choose_examples(
    counts: NDArray[np.integer], scores: NDArray[np.floating], number: int
) -> dict[str, NDArray[np.intp]]:
    """Which candidates to show for a selection.

    Args:
        counts: how often it draws each [n], in the order of uids.
        scores: of each [n]; those without one count as lowest.
        number: examples in each group, at most.

    Returns:
        Candidates by group: `top`, drawn most often, higher scores first where equal; `middle`,
        around the median of those drawn; `rejected`, never drawn, at equal steps from the highest
        score to the lowest. No example is in two groups.
    """
    ranked = np.lexsort((-np.nan_to_num(scores, nan=-np.inf), -counts))
    drawn = ranked[counts[ranked] > 0]
    never = ranked[len(drawn) :]
    rest = drawn[number:]
    start = min(max(len(drawn) // 2 - number // 2 - number, 0), max(len(rest) - number, 0))
    steps = np.unique(np.linspace(0, max(len(never) - 1, 0), number).round().astype(np.intp))
    return {
        "top": drawn[:number],
        "middle": rest[start : start + number],
        "rejected": never[steps] if len(never) else never,
    }


def read_pictures(
    candidates: Candidates, wanted: NDArray[np.intp], num_workers: int
) -> tuple[dict[int, Picture], list[str]]:
    """Thumbnails and captions of some candidates, and the tars that were opened for them.

    Raises:
        InputError: no candidate has a picture.
    """
    numbers = np.unique(wanted)
    names = encode_uids(candidates.uids[numbers]).to_pylist()
    by_tar: dict[int, dict[str, int]] = {}
    for name, number in zip(names, numbers.tolist(), strict=True):
        by_tar.setdefault(int(candidates.tar_of[number]), {})[name] = number

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
    places: NDArray[np.signedinteger],
    ranking: Ranking,
    selections: Sequence[Selection],
    number: int,
    num_workers: int,
) -> dict[str, Any]:
    """Pictures and captions: top, middle and rejected examples of each selection.

    Args:
        places: where the candidates are among the examples read, -1 for none [c].
    """
    inside = np.flatnonzero(places >= 0)
    scores = ranking.values[places[inside]]
    chosen = []
    for selection in selections:
        counts = selection.counts_of(candidates.uids[inside])
        groups = choose_examples(counts, scores, number)
        chosen.append((selection.name, counts, groups))
    wanted = [inside[group] for _, _, groups in chosen for group in groups.values()]
    pictures, opened = read_pictures(candidates, np.concatenate(wanted), num_workers)

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


def _read_tar(tar: str, wanted: dict[str, int]) -> dict[int, Picture]:
    pictures: dict[int, Picture] = {}
    problem = _MISSING
    samples = read_tar(tar)
    try:
        for sample in samples:
            try:
                uid = stored_uid(sample)
            except Skip:
                continue
            if uid in wanted and wanted[uid] not in pictures:
                pictures[wanted[uid]] = _picture(sample)
            if len(pictures) == len(wanted):
                break  # the rest of the tar is not needed
    except UnreadableShard as error:
        problem = f"tar cannot be read ({error})"
    finally:
        samples.close()
    for number in wanted.values():
        pictures.setdefault(number, Picture(None, 0, 0, "", problem))
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
