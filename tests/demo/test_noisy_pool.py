"""The noisy pool: the kinds of its pairs, parts without common drawings, and its files."""

from __future__ import annotations

import io
import json
import math
import re
import sys
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

pytest.importorskip("webdataset")

from datacomp_flyt.demo import POOL, noisy_pool
from datacomp_flyt.demo.noisy_pool import Pair, make_pair, make_pairs
from datacomp_flyt.pool.subset import check_subset_file, read_subset
from datacomp_flyt.tars.samples import read_tar
from tests.conftest import sorted_uids
from tests.demo import drawn

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
LOOKS_LIKE = {
    "zero": "six", "one": "seven", "two": "seven", "three": "eight", "four": "nine",
    "five": "three", "six": "zero", "seven": "one", "eight": "three", "nine": "four",
}  # fmt: skip
BOILERPLATE = re.compile(
    r"click to enlarge|image not available|free stock photo download|untitled"
    r"|IMG_[0-9]{4}\.jpg|home page banner|thumbnail"
)
SHARES = {  # of noise 0.4
    "true": 0.45, "off_task": 0.15, "swapped": 0.2, "lookalike": 0.06, "boilerplate": 0.06,
    "blank": 0.024, "cropped": 0.028, "duplicate": 0.028,
}  # fmt: skip
PAIRS = 2300
Files = dict[str, bytes]


def make_files(out: Path, pairs: int, seed: int, noise: float = 0.4) -> Files:
    """Run the command, and return the files that it writes, by path."""
    words = ["", "--out", out, "--pairs", pairs, "--noise", noise, "--seed", seed]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(word) for word in words])
        noisy_pool.main()
    found = (path for path in out.rglob("*") if path.is_file())
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in found}


class Made(NamedTuple):
    """A pool of coded drawings: its folder, its samples in order, and each uid's kind."""

    folder: Path
    samples: list[dict[str, Any]]
    kinds: dict[str, str]

    def of(self, kind: str) -> Iterator[tuple[np.ndarray, str]]:
        """Yield the stored pictures and the captions of a kind."""
        for sample in self.samples:
            if self.kinds[json.loads(sample["json"])["uid"]] == kind:
                yield drawn.pixels(sample["jpg"]), sample["txt"].decode()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("coded")
    with pytest.MonkeyPatch.context() as patch:
        drawn.use(patch, drawn.coded_sheets())
        make_files(folder, PAIRS, 0)
    kinds = pq.read_table(folder / "kinds.parquet").to_pydict()
    return Made(folder, samples_of(folder / "shards"), dict(zip(*kinds.values(), strict=True)))


def samples_of(folder: Path) -> list[dict[str, Any]]:
    return [sample for path in sorted(folder.glob("*.tar")) for sample in read_tar(str(path))]


def words_in(caption: str) -> tuple[list[str], list[str]]:
    """Return the digits and inks that a caption names."""
    spoken = caption.split()
    return [w for w in spoken if w in WORDS], [w for w in spoken if w in drawn.INKS]


# --- shares and seeds


def test_shares_of_kinds() -> None:
    number = 4000
    found = Counter(pair.kind for pair in make_pairs(number, 0.4, 7))
    assert found.keys() == SHARES.keys()
    for kind, share in SHARES.items():
        deviation = math.sqrt(number * share * (1 - share))
        assert abs(found[kind] - number * share) < 4.5 * deviation, kind


def test_no_noise_and_the_most() -> None:
    clean = Counter(pair.kind for pair in make_pairs(400, 0.0, 0))
    assert clean.keys() == {"true", "off_task"}
    worst = Counter(pair.kind for pair in make_pairs(2000, 0.8, 0))
    assert abs(worst["true"] - 100) < 4.5 * math.sqrt(2000 * 0.05 * 0.95)


def same(a: Pair, b: Pair) -> bool:
    return (a.kind, a.caption) == (b.kind, b.caption) and np.array_equal(a.picture, b.picture)


def test_a_pair_depends_on_seed_and_place_only() -> None:
    few, many = list(make_pairs(40, 0.4, 3)), list(make_pairs(90, 0.4, 3))
    assert all(map(same, few, many))
    other = make_pairs(40, 0.4, 4)
    assert not any(map(same, few, other))


@pytest.fixture
def few_drawings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use small labelled parts and tars, since parts are drawn anew for each pool."""
    drawings = {"pool": range(240), "downstream": range(240, 244), "evaluation": range(300, 304)}
    monkeypatch.setattr(noisy_pool, "DRAWINGS", drawings)
    monkeypatch.setattr(noisy_pool, "PAIRS_PER_SHARD", 100)


@pytest.mark.usefixtures("few_drawings")
def test_a_seed_decides_every_byte(tmp_path: Path) -> None:
    first, again, other = (
        make_files(tmp_path / name, 110, seed) for name, seed in (("a", 5), ("b", 5), ("c", 6))
    )
    assert first == again
    assert first.keys() == other.keys()
    unlike = {name for name in first if first[name] != other[name]}
    assert unlike == {name for name in first if Path(name).suffix in (".tar", ".parquet", ".npy")}


# --- kinds


def test_what_is_true_names_digit_and_ink(made: Made) -> None:
    forms = defaultdict(set)
    for picture, caption in made.of("true"):
        digit, _, ink = drawn.read(picture)
        digits, inks = words_in(caption)
        assert digits == [WORDS[digit]]
        assert inks in ([], [ink])
        forms[caption.replace(WORDS[digit], "W").replace(ink, "I")].add((digit, ink))
    assert set(forms) == {
        "W", "the number W", "a handwritten W", "photo of the digit W", "I W", "a I digit W",
    }  # fmt: skip
    assert set().union(*forms.values()) == {(d, ink) for d in range(10) for ink in drawn.INKS}


def test_what_is_swapped_never_names_the_digit(made: Made) -> None:
    named = set()
    for picture, caption in made.of("swapped"):
        digits, _ = words_in(caption)
        assert len(digits) == 1
        named.add((WORDS[drawn.read(picture)[0]], digits[0]))
    assert not any(shown == told for shown, told in named)
    assert len(named) > 80  # of the 90 that there are, among some 460 pairs


def test_what_looks_alike_is_named(made: Made) -> None:
    shown = set()
    for picture, caption in made.of("lookalike"):
        digit, _, ink = drawn.read(picture)
        digits, inks = words_in(caption)
        assert digits == [LOOKS_LIKE[WORDS[digit]]]
        assert inks in ([], [ink])
        shown.add(digit)
    assert shown == set(range(10))


def test_boilerplate_says_nothing_of_the_picture(made: Made) -> None:
    captions = []
    for picture, caption in made.of("boilerplate"):
        drawn.read(picture)  # a drawing it is
        assert BOILERPLATE.fullmatch(caption)
        captions.append(re.sub("[0-9]+", "N", caption))
    assert len(set(captions)) == 7


def test_blanks_have_no_ink(made: Made) -> None:
    blank = [drawn.spread(picture) for picture, _ in made.of("blank")]
    assert max(blank) < 12  # the camera's grain is 8
    assert min(drawn.spread(picture) for picture, _ in made.of("true")) > 20
    assert all(words_in(caption)[0] for _, caption in made.of("blank"))


def test_crops_show_a_ninth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ink in the middle grows to nine times its area, and ink at the edge vanishes."""
    sheets = {name: np.zeros((10, 400, 28, 28)) for name in ("middle", "edge")}
    sheets["middle"][..., 11:17, 11:17] = 1
    sheets["edge"][..., :4, :] = 1

    def inked(name: str, kind: str) -> float:
        """Return the share of dark pixels over many pictures."""
        drawn.use(monkeypatch, sheets[name])
        rng = np.random.default_rng(0)
        return float(np.mean([make_pair(rng, kind).picture.min(2) < 130 for _ in range(60)]))

    assert inked("middle", "true") == pytest.approx(36 / 1024, rel=0.01)
    assert inked("middle", "cropped") == pytest.approx(36 / 121, rel=0.1)
    assert inked("edge", "true") == pytest.approx(4 * 28 / 1024, rel=0.01)
    assert inked("edge", "cropped") == 0


def test_duplicates_are_true_copies_of_a_few(made: Made) -> None:
    copies = list(made.of("duplicate"))
    distinct = {(picture.tobytes(), caption) for picture, caption in copies}
    assert len(copies) > 30
    assert len(distinct) <= 10
    for picture, caption in copies:
        assert words_in(caption)[0] == [WORDS[drawn.read(picture)[0]]]
    truth = {picture.tobytes() for picture, _ in made.of("true")}
    assert len(truth) == sum(kind == "true" for kind in made.kinds.values())


def test_what_is_off_task_is_the_embedded_pool(made: Made) -> None:
    drawings = defaultdict(list)
    for path in sorted((POOL / "shards").glob("*.tar")):
        with tarfile.open(path) as tar:
            content = {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
        for name in (name for name in content if name.endswith(".txt")):
            with Image.open(io.BytesIO(content[name.replace(".txt", ".jpg")])) as picture:
                small = np.asarray(picture.convert("RGB").resize((32, 32)), float)
            drawings[content[name].decode()].append(small)
    shown = set()
    for picture, caption in made.of("off_task"):
        assert min(np.abs(picture - each).mean() for each in drawings[caption]) < 12
        shown.add(caption)
    assert len(shown) > 100
    assert not shown & {caption for _, caption in made.of("true")}


# --- parts


def test_parts_share_no_drawing(made: Made) -> None:
    seen: dict[str, set[tuple[int, int]]] = {}
    kinds = ("true", "swapped", "lookalike", "boilerplate", "duplicate")
    seen["pool"] = {drawn.read(picture)[:2] for kind in kinds for picture, _ in made.of(kind)}
    for part in ("downstream", "evaluation"):
        samples = samples_of(made.folder / part)
        seen[part] = {drawn.read(drawn.pixels(sample["jpg"]))[:2] for sample in samples}
    assert {part: len(each) > 300 for part, each in seen.items()} == dict.fromkeys(seen, True)
    numbers = {part: {number for _, number in each} for part, each in seen.items()}
    assert numbers["pool"] == set(range(240))
    assert numbers["downstream"] == set(range(240, 300))
    assert numbers["evaluation"] == set(range(300, 400))


@pytest.mark.parametrize(("part", "number"), [("downstream", 600), ("evaluation", 3000)])
def test_labelled_parts(made: Made, part: str, number: int) -> None:
    samples = samples_of(made.folder / part)
    labels = Counter()
    captions = set()
    for sample in samples:
        digit, _, ink = drawn.read(drawn.pixels(sample["jpg"]))
        assert int(sample["cls"]) == digit
        assert sample["txt"].decode() == f"a {ink} digit {WORDS[digit]}"
        labels[digit] += 1
        captions.add(sample["txt"])
    assert labels == dict.fromkeys(range(10), number // 10)
    assert len(captions) == 30
    folder = made.folder / part
    assert (folder / "classnames.txt").read_text().split() == WORDS
    templates = (folder / "zeroshot_classification_templates.txt").read_text().splitlines()
    assert len(templates) > 1
    assert all(template.count("{c}") == 1 for template in templates)


def test_sheets_hold_400_drawings_a_class() -> None:
    sheets = noisy_pool.sheets()
    assert sheets.shape == (10, 400, 28, 28)
    assert np.unique(sheets).tolist() == [0, 1 / 3, 2 / 3, 1]
    assert len({drawing.tobytes() for sheet in sheets for drawing in sheet}) == 4000
    for digit in range(10):  # drawing 21 is the second of the second row of twenty
        with Image.open(Path(noisy_pool.__file__).parent / "digits" / f"{digit}.png") as sheet:
            cut = np.array(sheet.convert("L").crop((28, 28, 56, 56)))
        np.testing.assert_array_equal(np.rint(sheets[digit, 21] * 255), cut)


# --- files


def test_tars_and_their_counts(made: Made) -> None:
    shards = sorted((made.folder / "shards").glob("*.tar"))
    assert [path.name for path in shards] == [f"{shard:08d}.tar" for shard in range(3)]
    for path, expected in zip(shards, (1000, 1000, 300), strict=True):
        assert len(list(read_tar(str(path)))) == expected
        stats = json.loads(path.with_name(f"{path.stem}_stats.json").read_text())
        assert stats == {"count": expected, "successes": expected}
    keys = [sample["__key__"] for sample in made.samples]
    assert len(set(keys)) == PAIRS
    for sample in made.samples:
        facts = json.loads(sample["json"])
        assert facts["caption"] == sample["txt"].decode()
        assert drawn.pixels(sample["jpg"]).shape == (facts["height"], facts["width"], 3)


def test_tables_say_what_the_tars_hold(made: Made) -> None:
    lengths, sizes = {}, {}
    for sample in made.samples:
        uid = json.loads(sample["json"])["uid"]
        lengths[uid], sizes[uid] = len(sample["txt"]), len(sample["jpg"])
    assert len(lengths) == PAIRS
    for name, expected in (("caption_length", lengths), ("image_bytes", sizes)):
        table = pq.read_table(made.folder / "scores" / name / "all.parquet").to_pydict()
        assert list(table) == ["uid", name]
        assert len(table["uid"]) == PAIRS
        assert dict(zip(*table.values(), strict=True)) == expected
    assert made.kinds.keys() == lengths.keys()


@pytest.mark.usefixtures("few_drawings")
def test_pools_share_no_uid(made: Made, tmp_path: Path) -> None:
    seen = set(made.kinds)
    for seed, noise in ((1, 0.4), (0, 0.5)):
        folder = tmp_path / f"{seed} {noise}"
        make_files(folder, 100, seed, noise)
        uids = pq.read_table(folder / "kinds.parquet")["uid"].to_pylist()
        assert not seen & set(uids)
        seen |= set(uids)


def test_the_random_subset(made: Made) -> None:
    path = made.folder / "subsets" / "random_30.npy"
    report = check_subset_file(path, pool_uids=sorted_uids(list(made.kinds)))
    assert report.problems == []
    uids, counts = read_subset(path)
    assert counts.max() == 1
    assert abs(len(uids) - 0.3 * PAIRS) < 4.5 * math.sqrt(PAIRS * 0.3 * 0.7)
    # random: as many spoiled ones as everywhere
    drawn_uids = {f"{high:016x}{low:016x}" for high, low in uids.tolist()}
    true = sum(made.kinds[uid] == "true" for uid in drawn_uids)
    share = sum(kind == "true" for kind in made.kinds.values()) / PAIRS
    assert abs(true - share * len(uids)) < 4.5 * math.sqrt(len(uids) * share * (1 - share))
