"""Make a pool with the faults of web pools for the tour: handwritten digits, emoji and noise.

    python -m datacomp_flyt.demo.noisy_pool --out demo_output/pool --noise 0.5 --seed 0

The downstream task is about digits in coloured ink on paper, captioned with their names. Emoji with
their own names are good pairs of no use to it. The noise is of the kinds that web pools have
(`NOISE`). `kinds.parquet` lists the kind of each pair for judging; no selection reads it.

Pool, downstream training set and evaluation set have no drawing in common: they use 240, 60 and 100
drawings of each digit.
"""

from __future__ import annotations

from datacomp_flyt.exits import Parser, run_main

if __name__ == "__main__":  # all else is imported where Ctrl-C has a handler
    run_main("datacomp_flyt.demo.noisy_pool")

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from datacomp_flyt.demo import POOL
from datacomp_flyt.pool.subset import write_subset
from datacomp_flyt.pool.uids import decode_uids
from datacomp_flyt.tars.samples import decode, read_tar

DIGITS = Path(__file__).parent / "digits"
SIDE = 32  # pixels of a picture
DIGIT_SIDE = 28
PICTURES_OF_A_DRAWING = {"downstream": 1, "evaluation": 3}
DRAWINGS = {"pool": range(240), "downstream": range(240, 300), "evaluation": range(300, 400)}
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LOOKS_LIKE = (6, 7, 7, 8, 9, 3, 0, 1, 3, 4)
INKS = {"red": (220, 40, 40), "green": (30, 150, 60), "blue": (40, 70, 220)}
CAPTIONS = (
    "{word}",
    "the number {word}",
    "a handwritten {word}",
    "photo of the digit {word}",
    "{ink} {word}",
    "a {ink} digit {word}",
)
TEMPLATES = ("the number {c}", "a handwritten {c}", "photo of the digit {c}")
BOILERPLATE = (
    "click to enlarge",
    "image not available",
    "free stock photo download",
    "untitled",
    "IMG_{number}.jpg",
    "home page banner",
    "thumbnail",
)
NOISE = {
    "swapped": 0.50,  # with the caption of another digit
    "lookalike": 0.15,  # with the name of the digit that looks most like it
    "boilerplate": 0.15,
    "blank": 0.06,
    "cropped": 0.07,  # the middle ninth, enlarged
    "duplicate": 0.07,  # true, but copies of ten pairs
}
MODEL = "flyt-demo"  # see `clip/model_configs`
OFF_TASK = 0.15  # share of emoji with their own names
RANDOM = "random_30"  # a subset to compare with
FACTS = ("caption_length", "image_bytes")  # score columns that need no model
PAIRS_PER_SHARD = 1000

Pixels = NDArray[np.uint8]
Sample = dict[str, bytes]


@dataclass(frozen=True)
class Pair:
    """A picture [SIDE, SIDE, 3], its caption, and the kind of the pair."""

    picture: Pixels
    caption: str
    kind: str


@cache
def sheets() -> NDArray[np.float64]:
    """Return the ink of all drawings [10 digits, 400 drawings, 28, 28], 0 to 1."""
    drawings = []
    for digit in range(10):
        with Image.open(DIGITS / f"{digit}.png") as sheet:
            ink = np.array(sheet.convert("L")) / 255
        rows, columns = (side // DIGIT_SIDE for side in ink.shape)
        split = ink.reshape(rows, DIGIT_SIDE, columns, DIGIT_SIDE).transpose(0, 2, 1, 3)
        drawings.append(split.reshape(-1, DIGIT_SIDE, DIGIT_SIDE))
    return np.stack(drawings)


@cache
def emoji() -> list[tuple[Pixels, str]]:
    """Return the embedded pool's pictures [SIDE, SIDE, 3] with their names."""
    pairs = []
    for path in sorted((POOL / "shards").glob("*.tar")):
        for sample in read_tar(str(path)):
            small = decode(sample["jpg"], lambda picture: picture.resize((SIDE, SIDE)))
            pairs.append((np.array(small), sample["txt"].decode()))
    return pairs


def draw(rng: np.random.Generator, digit: int, part: str) -> tuple[Pixels, str]:
    """Return a digit drawn at a random place on tinted paper [SIDE, SIDE, 3], and its ink."""
    ink = str(rng.choice(list(INKS)))
    drawing = np.pad(sheets()[digit, rng.choice(DRAWINGS[part])], (SIDE - DIGIT_SIDE) // 2)
    shift = tuple(rng.integers(-2, 3, 2))
    written = np.roll(drawing, shift, (0, 1))[..., None]
    paper = 235 + rng.integers(-15, 16, 3)
    return grain(rng, paper * (1 - written) + np.array(INKS[ink]) * written), ink


def grain(rng: np.random.Generator, picture: NDArray[Any]) -> Pixels:
    """Add the noise of a cheap camera to a picture."""
    noisy = picture + rng.normal(0, 8, picture.shape)
    return noisy.clip(0, 255).astype(np.uint8)


def describe(rng: np.random.Generator, digit: int, ink: str) -> str:
    """Return a caption that is true of a digit."""
    return CAPTIONS[rng.integers(len(CAPTIONS))].format(word=WORDS[digit], ink=ink)


def make_pair(rng: np.random.Generator, kind: str) -> Pair:
    """Return a pair of a kind: `true`, `off_task`, or one of NOISE."""
    if kind == "off_task":
        picture, caption = emoji()[rng.integers(len(emoji()))]
        return Pair(grain(rng, picture), caption, kind)
    if kind == "duplicate":
        copied = make_pair(np.random.default_rng(rng.integers(10)), "true")
        return Pair(copied.picture, copied.caption, kind)
    digit = int(rng.integers(10))
    picture, ink = draw(rng, digit, "pool")
    caption = describe(rng, digit, ink)
    if kind == "swapped":
        other = (digit + int(rng.integers(1, 10))) % 10
        caption = describe(rng, other, str(rng.choice(list(INKS))))
    elif kind == "lookalike":
        caption = describe(rng, LOOKS_LIKE[digit], ink)
    elif kind == "boilerplate":
        caption = str(rng.choice(BOILERPLATE)).format(number=rng.integers(1000, 10000))
    elif kind == "blank":
        picture = grain(rng, np.full((SIDE, SIDE, 3), 235) + rng.integers(-15, 16, 3))
    elif kind == "cropped":
        middle = slice(SIDE // 3, 2 * SIDE // 3)
        part = Image.fromarray(np.ascontiguousarray(picture[middle, middle]))
        picture = np.array(part.resize((SIDE, SIDE)))
    return Pair(picture, caption, kind)


def make_pairs(num_pairs: int, noise: float, seed: int) -> Iterator[Pair]:
    """Yield the pool's pairs; pair i depends on `seed`, `noise` and i only."""
    shares = {"true": 1 - noise - OFF_TASK, "off_task": OFF_TASK}
    shares |= {kind: noise * share for kind, share in NOISE.items()}
    for index in range(num_pairs):
        rng = np.random.default_rng([seed, index])
        kind = str(rng.choice(list(shares), p=list(shares.values())))
        yield make_pair(rng, kind)


def jpeg(picture: Pixels) -> bytes:
    """Return a picture as the bytes of a JPEG file."""
    stored = io.BytesIO()
    Image.fromarray(picture).save(stored, "JPEG", quality=92)
    return stored.getvalue()


def write_tar(path: Path, samples: Mapping[str, Sample]) -> None:
    """Write a webdataset shard with KEY.SUFFIX for each file of each sample."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, files in samples.items():
            for suffix, content in files.items():
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def write_pool(out: Path, pairs: Iterable[Pair], name: str) -> None:
    """Write tars like img2dataset's, two score tables, a random subset and `kinds.parquet`."""
    shards: list[dict[str, Sample]] = []
    columns: dict[str, list[Any]] = {"uid": [], "kind": [], **{name: [] for name in FACTS}}
    for index, pair in enumerate(pairs):
        shard, row = divmod(index, PAIRS_PER_SHARD)
        if row == 0:
            shards.append({})
        uid = hashlib.md5(f"{name} {index}".encode(), usedforsecurity=False).hexdigest()
        facts = {
            "uid": uid, "caption": pair.caption, "url": f"demo:{index}",
            "width": SIDE, "height": SIDE, "original_width": SIDE, "original_height": SIDE,
        }  # fmt: skip
        files = {
            "jpg": jpeg(pair.picture),
            "txt": pair.caption.encode(),
            "json": json.dumps(facts).encode(),
        }
        shards[shard][f"{shard:05d}{row:04d}"] = files
        row_of = (uid, pair.kind, float(len(files["txt"])), float(len(files["jpg"])))
        for column, value in zip(columns.values(), row_of, strict=True):
            column.append(value)
    for folder in ("shards", "subsets", *(f"scores/{name}" for name in FACTS)):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for shard_index, samples in enumerate(shards):
        write_tar(out / "shards" / f"{shard_index:08d}.tar", samples)
        counts = {"count": len(samples), "successes": len(samples)}
        (out / "shards" / f"{shard_index:08d}_stats.json").write_text(json.dumps(counts))
    table = pa.table(columns)
    for name in FACTS:
        pq.write_table(table.select(["uid", name]), out / "scores" / name / "all.parquet")
    pq.write_table(table.select(["uid", "kind"]), out / "kinds.parquet")
    rng = np.random.default_rng(len(columns["uid"]))
    chosen = np.flatnonzero(rng.random(len(table)) < 0.3)
    uids = np.sort(decode_uids(table["uid"].take(pa.array(chosen))))
    write_subset(out / "subsets" / f"{RANDOM}.npy", uids)


def write_labelled(out: Path, part: str, seed: int) -> None:
    """Write tars with pictures of a part's drawings, labels, and captions of digit and ink."""
    out.mkdir(parents=True, exist_ok=True)
    samples: dict[str, Sample] = {}
    for index in range(10 * len(DRAWINGS[part]) * PICTURES_OF_A_DRAWING[part]):
        rng = np.random.default_rng([seed, index])
        digit = index % 10
        picture, ink = draw(rng, digit, part)
        caption = CAPTIONS[-1].format(word=WORDS[digit], ink=ink)
        files = {"jpg": jpeg(picture), "cls": str(digit).encode(), "txt": caption.encode()}
        samples[f"{index:06d}"] = files
    keys = list(samples)
    for shard in range(len(keys) // 100):
        part_of_keys = keys[100 * shard : 100 * shard + 100]
        write_tar(out / f"{shard:08d}.tar", {key: samples[key] for key in part_of_keys})
    (out / "classnames.txt").write_text("\n".join(WORDS) + "\n")
    (out / "zeroshot_classification_templates.txt").write_text("\n".join(TEMPLATES) + "\n")


def write_sets(*, out: Path, pairs: int, noise: float, seed: int) -> None:
    """Write `shards/`, `scores/`, `kinds.parquet`, `downstream/` and `evaluation/`.

    Args:
        out: the folder to write to.
        pairs: the number of pairs in the pool.
        noise: the share of spoiled pairs.
        seed: any non-negative integer.
    """
    write_pool(out, make_pairs(pairs, noise, seed), f"demo {noise} {seed}")
    write_labelled(out / "downstream", "downstream", seed)
    write_labelled(out / "evaluation", "evaluation", seed)


def main() -> None:
    """Parse the flags and call `write_sets`."""
    parser = Parser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--noise", type=float, default=0.5, help="share of spoiled pairs")
    parser.add_argument("--seed", type=int, default=0)
    write_sets(**vars(parser.parse_args()))
