"""A pool with the faults of web pools, for the tour: handwritten digits, emoji, and noise.

    python -m datacomp_flyt.demo.noisy_pool --out demo_output/pool --noise 0.5 --seed 0

Digits in coloured ink on paper, captioned with their names, are what the downstream task asks for.
Emoji with their own names are good pairs of no use to it. The noise is of the kinds web pools have
(`NOISE`). Nobody is told which pair is what; `kinds.parquet` says it to those who judge.

Three sets with no drawing in common: the pool, a downstream training set and an evaluation set, of
240, 60 and 100 drawings of each digit.
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
    "swapped": 0.50,  # the caption of another picture
    "lookalike": 0.15,  # named as the digit that looks most like it
    "boilerplate": 0.15,
    "blank": 0.06,
    "cropped": 0.07,  # a ninth of it, enlarged
    "duplicate": 0.07,  # true, but copies of a few
}
MODEL = "flyt-demo"  # of open_clip, see `scorers/model_configs`
OFF_TASK = 0.15  # share of emoji with their own names
RANDOM = "random_30"  # a subset to compare with
FACTS = ("caption_length", "image_bytes")  # what anyone knows of a pair, as scores
PAIRS_PER_SHARD = 1000

Pixels = NDArray[np.uint8]
Sample = dict[str, bytes]


@dataclass(frozen=True)
class Pair:
    """A picture [SIDE, SIDE, 3], its caption, and which kind of pair it is."""

    picture: Pixels
    caption: str
    kind: str


@cache
def sheets() -> NDArray[np.float64]:
    """[10 digits, 400 drawings, 28, 28], ink between 0 and 1."""
    found = []
    for digit in range(10):
        with Image.open(DIGITS / f"{digit}.png") as sheet:
            ink = np.array(sheet.convert("L")) / 255
        rows, columns = (side // DIGIT_SIDE for side in ink.shape)
        split = ink.reshape(rows, DIGIT_SIDE, columns, DIGIT_SIDE).transpose(0, 2, 1, 3)
        found.append(split.reshape(-1, DIGIT_SIDE, DIGIT_SIDE))
    return np.stack(found)


@cache
def emoji() -> list[tuple[Pixels, str]]:
    """The embedded pool's pictures, made as small as the digits, and their names."""
    found = []
    for path in sorted((POOL / "shards").glob("*.tar")):
        for sample in read_tar(str(path)):
            small = decode(sample["jpg"], lambda picture: picture.resize((SIDE, SIDE)))
            found.append((np.array(small), sample["txt"].decode()))
    return found


def draw(rng: np.random.Generator, digit: int, part: str) -> tuple[Pixels, str]:
    """A digit written somewhere on tinted paper, and its ink."""
    ink = str(rng.choice(list(INKS)))
    drawing = np.pad(sheets()[digit, rng.choice(DRAWINGS[part])], (SIDE - DIGIT_SIDE) // 2)
    shift = tuple(rng.integers(-2, 3, 2))
    written = np.roll(drawing, shift, (0, 1))[..., None]
    paper = 235 + rng.integers(-15, 16, 3)
    return grain(rng, paper * (1 - written) + np.array(INKS[ink]) * written), ink


def grain(rng: np.random.Generator, picture: NDArray[Any]) -> Pixels:
    """The picture as a cheap camera sees it."""
    seen = picture + rng.normal(0, 8, picture.shape)
    return seen.clip(0, 255).astype(np.uint8)


def describe(rng: np.random.Generator, digit: int, ink: str) -> str:
    """A caption that is true of the digit."""
    return CAPTIONS[rng.integers(len(CAPTIONS))].format(word=WORDS[digit], ink=ink)


def make_pair(rng: np.random.Generator, kind: str) -> Pair:
    """A pair of that kind: `true`, `off_task`, or one of NOISE."""
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


def make_pairs(number: int, noise: float, seed: int) -> Iterator[Pair]:
    """The pool's pairs; pair i depends on `seed` and i only."""
    shares = {"true": 1 - noise - OFF_TASK, "off_task": OFF_TASK}
    shares |= {kind: noise * share for kind, share in NOISE.items()}
    for place in range(number):
        rng = np.random.default_rng([seed, place])
        kind = str(rng.choice(list(shares), p=list(shares.values())))
        yield make_pair(rng, kind)


def jpeg(picture: Pixels) -> bytes:
    stored = io.BytesIO()
    Image.fromarray(picture).save(stored, "JPEG", quality=92)
    return stored.getvalue()


def write_tar(path: Path, samples: Mapping[str, Sample]) -> None:
    """A webdataset shard: KEY.SUFFIX for each sample's key and each of its files."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, files in samples.items():
            for suffix, content in files.items():
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def write_pool(out: Path, pairs: Iterable[Pair], name: str) -> None:
    """Tars as img2dataset writes them, two score tables, a random subset, `kinds.parquet`."""
    shards: list[dict[str, Sample]] = []
    columns: dict[str, list[Any]] = {"uid": [], "kind": [], **{name: [] for name in FACTS}}
    for place, pair in enumerate(pairs):
        shard, row = divmod(place, PAIRS_PER_SHARD)
        if row == 0:
            shards.append({})
        uid = hashlib.md5(f"{name} {place}".encode(), usedforsecurity=False).hexdigest()
        facts = {
            "uid": uid, "caption": pair.caption, "url": f"demo:{place}",
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
    for number, samples in enumerate(shards):
        write_tar(out / "shards" / f"{number:08d}.tar", samples)
        counts = {"count": len(samples), "successes": len(samples)}
        (out / "shards" / f"{number:08d}_stats.json").write_text(json.dumps(counts))
    table = pa.table(columns)
    for name in FACTS:
        pq.write_table(table.select(["uid", name]), out / "scores" / name / "all.parquet")
    pq.write_table(table.select(["uid", "kind"]), out / "kinds.parquet")
    rng = np.random.default_rng(len(columns["uid"]))
    chosen = np.flatnonzero(rng.random(len(table)) < 0.3)
    uids = np.sort(decode_uids(table["uid"].take(pa.array(chosen))))
    write_subset(out / "subsets" / f"{RANDOM}.npy", uids)


def write_labelled(out: Path, part: str, seed: int) -> None:
    """Pictures of the part's drawings, each with its label and a caption of digit and ink."""
    out.mkdir(parents=True, exist_ok=True)
    samples: dict[str, Sample] = {}
    for place in range(10 * len(DRAWINGS[part]) * PICTURES_OF_A_DRAWING[part]):
        rng = np.random.default_rng([seed, place])
        digit = place % 10
        picture, ink = draw(rng, digit, part)
        caption = CAPTIONS[-1].format(word=WORDS[digit], ink=ink)
        files = {"jpg": jpeg(picture), "cls": str(digit).encode(), "txt": caption.encode()}
        samples[f"{place:06d}"] = files
    keys = list(samples)
    for shard in range(len(keys) // 100):
        held = {key: samples[key] for key in keys[100 * shard : 100 * shard + 100]}
        write_tar(out / f"{shard:08d}.tar", held)
    (out / "classnames.txt").write_text("\n".join(WORDS) + "\n")
    (out / "zeroshot_classification_templates.txt").write_text("\n".join(TEMPLATES) + "\n")


def main() -> None:
    """Writes `shards/`, `scores/`, `kinds.parquet`, `downstream/` and `evaluation/`."""
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--noise", type=float, default=0.5, help="share of spoiled pairs")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    name = f"demo {args.noise} {args.seed}"
    write_pool(args.out, make_pairs(args.pairs, args.noise, args.seed), name)
    write_labelled(args.out / "downstream", "downstream", args.seed)
    write_labelled(args.out / "evaluation", "evaluation", args.seed)
