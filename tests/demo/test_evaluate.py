"""Zero-shot accuracy and retrieval against loops, and for models with known figures."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")
pytest.importorskip("webdataset")
from PIL import Image
from torch import Tensor, nn

from datacomp_flyt.clip.models import ClipModel, load_clip_model
from datacomp_flyt.demo import evaluate as module
from datacomp_flyt.demo.evaluate import evaluate
from tests.conftest import refusal
from tests.demo import drawn
from tests.flyt.tars import write_tar

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TEMPLATES = ("the number {c}", "a handwritten {c}")
Row = tuple[int, int]  # digit and ink


def png(pixels: np.ndarray) -> bytes:
    """Encode without loss; the readers accept PNG under the name of JPEG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_set(
    folder: Path, rows: list[Row], picture: Callable[[int, Row], np.ndarray], shards: int = 3
) -> Path:
    """Write an evaluation set in which row n shows `picture(n, row)`."""
    inks = list(drawn.INKS)
    samples = [
        {
            "jpg": png(picture(number, row)),
            "cls": str(row[0]).encode(),
            "txt": f"a {inks[row[1]]} digit {WORDS[row[0]]}".encode(),
        }
        for number, row in enumerate(rows)
    ]
    for shard, part in enumerate(np.array_split(np.arange(len(rows)), shards)):
        write_tar(folder / f"{shard:08d}.tar", [samples[number] for number in part])
    (folder / "classnames.txt").write_text("\n".join(WORDS) + "\n")
    text = "\n".join(TEMPLATES) + "\n"
    (folder / "zeroshot_classification_templates.txt").write_text(text)
    return folder


# --- a model of open_clip, against loops


def unlike(number: int, row: Row) -> np.ndarray:
    """Return a picture that a random network can tell apart: coarse noise in strong colours."""
    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 2, (4, 4, 3)) * 255
    return np.kron(coarse, np.ones((8, 8, 1))).astype(np.uint8)


@pytest.fixture(scope="module")
def random_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a set whose captions have two, three or four pictures each."""
    rows = [(d, ink) for d in range(10) for ink in range(3) for _ in range(2 + (d + ink) % 3)]
    order = np.random.default_rng(0).permutation(len(rows))
    return write_set(tmp_path_factory.mktemp("set"), [rows[i] for i in order], unlike)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Save random models as open_clip's trainer does."""
    folder, found = tmp_path_factory.mktemp("checkpoints"), {}
    for seed, name in enumerate(("a", "b")):
        clip = load_clip_model("flyt-demo", "random", "reference", seed)
        generator = torch.Generator().manual_seed(seed)
        for parameter in clip.model.parameters():  # far from zero, or all embeddings would be alike
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
        found[name] = folder / f"{name}.pt"
        state = {f"module.{key}": value for key, value in clip.model.state_dict().items()}
        torch.save({"epoch": 1, "state_dict": state}, found[name])
    return found


def unit(vector: list[float]) -> list[float]:
    length = sum(x * x for x in vector) ** 0.5
    return [x / length for x in vector]


def nearest(vector: list[float], others: list[list[float]]) -> int:
    """Return the index of the largest inner product, which is larger than all others."""
    products = [sum(a * b for a, b in zip(vector, other, strict=True)) for other in others]
    first, second = sorted(products, reverse=True)[:2]
    assert first - second > 1e-6  # or rounding would decide
    return products.index(first)


@torch.no_grad()
def slow_figures(checkpoint: Path, folder: Path) -> dict[str, float]:
    """Compute both figures one picture and text at a time, in float64 after the towers."""
    clip = load_clip_model("flyt-demo", str(checkpoint), "reference")
    model: Any = clip.model.double().eval()
    samples = [s for path in sorted(folder.glob("*.tar")) for s in read(path)]
    images, labels, captions = [], [], []
    for sample in samples:
        with Image.open(io.BytesIO(sample["jpg"])) as picture:
            pixels = clip.eval_transform(picture).double()
        images.append(unit(model.encode_image(pixels[None])[0].tolist()))
        labels.append(int(sample["cls"]))
        captions.append(sample["txt"].decode())

    def text(words: str) -> list[float]:
        return unit(model.encode_text(clip.tokenize([words]))[0].tolist())

    classes = []
    for word in WORDS:
        prompts = [text(template.replace("{c}", word)) for template in TEMPLATES]
        classes.append(unit([sum(values) / len(values) for values in zip(*prompts, strict=True)]))
    right = [nearest(image, classes) == label for image, label in zip(images, labels, strict=True)]

    distinct = sorted(set(captions))
    texts = [text(caption) for caption in distinct]
    hits = []
    for gallery_index in range(min(captions.count(caption) for caption in distinct)):
        gallery = []
        for caption in distinct:
            own = [row for row, other in enumerate(captions) if other == caption]
            gallery.append(images[own[gallery_index]])
        hits += [nearest(image, texts) == number for number, image in enumerate(gallery)]
        hits += [nearest(each, gallery) == number for number, each in enumerate(texts)]
    return {"accuracy": sum(right) / len(right), "retrieval": sum(hits) / len(hits)}


def read(path: Path) -> list[dict[str, bytes]]:
    """Read the samples of a tar by hand."""
    samples: dict[str, dict[str, bytes]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            key, extension = member.name.split(".")
            content = tar.extractfile(member)
            assert content is not None
            samples.setdefault(key, {})[extension] = content.read()
    return list(samples.values())


def test_figures_against_loops(random_set: Path, checkpoints: dict[str, Path]) -> None:
    figures = []
    for path in checkpoints.values():
        clip = load_clip_model("flyt-demo", str(path), "reference")
        clip.model.train()  # batch norms would make a picture's embedding depend on others
        figures.append(evaluate(clip, random_set))
        assert figures[-1] == pytest.approx(slow_figures(path, random_set), abs=1e-12)
    assert figures[0] != figures[1]
    assert min(figure for each in figures for figure in each.values()) > 0


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, words)])
    module.main()


def test_the_command(
    random_set: Path,
    checkpoints: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [f"{name}={path}" for name, path in checkpoints.items()]
    where = ("--evaluation_dir", random_set, "--out", tmp_path / "results.json")
    run(monkeypatch, *where, "--checkpoint", *given)
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results) == ["a", "b"]
    for name, path in checkpoints.items():
        clip = load_clip_model("flyt-demo", str(path), "reference")
        assert results[name] == evaluate(clip, random_set)
    said = capsys.readouterr().out.splitlines()
    assert said[0].split() == [
        "a", "accuracy", f"{results['a']['accuracy']:.3f}",
        "retrieval", f"{results['a']['retrieval']:.3f}",
    ]  # fmt: skip
    assert len(said) == 2


def test_a_checkpoint_of_another_model(
    random_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = load_clip_model("flyt-tiny", "random", "reference")
    torch.save({"state_dict": clip.model.state_dict()}, tmp_path / "tiny.pt")
    where = ("--evaluation_dir", random_set, "--out", tmp_path / "results.json")
    said = refusal(run, monkeypatch, *where, "--checkpoint", f"t={tmp_path / 'tiny.pt'}")
    assert f"--checkpoint {tmp_path / 'tiny.pt'} is not a flyt-demo" in said
    assert not (tmp_path / "results.json").exists()
    run(monkeypatch, *where, "--checkpoint", f"t={tmp_path / 'tiny.pt'}", "--model", "flyt-tiny")
    assert list(json.loads((tmp_path / "results.json").read_text())) == ["t"]


# --- models by hand


def flat(number: int, row: Row) -> np.ndarray:
    """Return a picture that shows digit and ink as its red and green."""
    return np.full((4, 4, 3), (10 * row[0], 10 * row[1], 0), np.uint8)


def look(picture: Any) -> Tensor:
    return torch.tensor(np.array(picture)[0, 0]).double() / 10


def spell(texts: list[str]) -> Tensor:
    """Return digit and ink of each text; 3 for a text that names no ink."""
    inks = [*drawn.INKS]
    rows = []
    for words in map(str.split, texts):
        ink = next((inks.index(word) for word in words if word in inks), 3)
        rows.append([next(WORDS.index(word) for word in words if word in WORDS), ink])
    return torch.tensor(rows)


class ByHand(nn.Module):
    """A model that embeds digit and ink; `sees` maps a picture's to those that it recognises."""

    def __init__(self, sees: Callable[[int, int], Row] = lambda digit, ink: (digit, ink)) -> None:
        super().__init__()
        self.sees = sees

    def embed(self, rows: list[Row], normalize: bool) -> Tensor:
        assert normalize
        vectors = torch.zeros(len(rows), 13, dtype=torch.float64)
        for vector, (digit, ink) in zip(vectors, rows, strict=True):
            vector[digit] = 1
            if ink < 3:
                vector[10 + ink] = 0.5
        return nn.functional.normalize(vectors, dim=1)

    def encode_image(self, images: Tensor, normalize: bool = False) -> Tensor:
        return self.embed([self.sees(int(row[0]), int(row[1])) for row in images], normalize)

    def encode_text(self, tokens: Tensor, normalize: bool = False) -> Tensor:
        return self.embed([(int(row[0]), int(row[1])) for row in tokens], normalize)


ALL = [(digit, ink) for digit in range(10) for ink in range(3)]


@pytest.mark.parametrize(
    ("sees", "accuracy", "retrieval"),
    [
        (lambda digit, ink: (digit, ink), 1.0, 1.0),
        # no two pictures are recognised as the same, since the order of ties is undefined
        (lambda digit, ink: ({8: 9, 9: 8}.get(digit, digit), ink), 0.8, 0.8),
        (lambda digit, ink: (digit, {0: 1, 1: 0}.get(ink, ink)), 1.0, 1 / 3),
        # confused inks do not change the digit
        (lambda digit, ink: (digit, (ink + 1) % 3), 1.0, 0.0),
        (lambda digit, ink: ((digit + 1) % 10, ink), 0.0, 0.0),
    ],
)
def test_figures_by_hand(
    tmp_path: Path, sees: Callable[[int, int], Row], accuracy: float, retrieval: float
) -> None:
    write_set(tmp_path, ALL * 2, flat)
    clip = ClipModel(ByHand(sees), look, spell, look)
    assert evaluate(clip, tmp_path) == pytest.approx(
        {"accuracy": accuracy, "retrieval": retrieval}, abs=1e-12
    )


def test_galleries_are_no_longer_than_the_rarest_caption(tmp_path: Path) -> None:
    """The second picture of a caption is left out if (0, 0) has only one."""
    seen: list[int] = []

    def sees(digit: int, ink: int) -> Row:
        seen.append(digit)
        wrong = digit == 5 and seen.count(5) > 3  # the second ones
        return (6 if wrong else digit, ink)

    write_set(tmp_path, [*ALL, *ALL[1:]], flat)
    figures = evaluate(ClipModel(ByHand(sees), look, spell, look), tmp_path)
    assert figures == {"accuracy": pytest.approx(56 / 59), "retrieval": 1.0}


class Angles(nn.Module):
    """A model that embeds digits as directions in a plane, in degrees, in pictures and texts."""

    def __init__(self, shown: dict[int, float], named: dict[int, float]) -> None:
        super().__init__()
        self.shown, self.named = shown, named

    def encode_image(self, images: Tensor, normalize: bool = False) -> Tensor:
        return self.directions([self.shown[int(row[0])] for row in images])

    def encode_text(self, tokens: Tensor, normalize: bool = False) -> Tensor:
        return self.directions([self.named.get(int(row[0]), 200) for row in tokens])

    def directions(self, degrees: list[float]) -> Tensor:
        angles = torch.tensor(degrees, dtype=torch.float64).deg2rad()
        return torch.stack([angles.cos(), angles.sin()], 1)


def test_retrieval_is_of_both_directions(tmp_path: Path) -> None:
    """The picture at 15 degrees finds the caption at 0; its own caption, at 40, finds it."""
    write_set(tmp_path, [(0, 0), (1, 0), (2, 0)], flat)
    model = Angles({0: 10, 1: 15, 2: 85}, {0: 0, 1: 40, 2: 90})
    figures = evaluate(ClipModel(model, look, spell, look), tmp_path)
    assert figures == pytest.approx({"accuracy": 2 / 3, "retrieval": (2 + 3) / 6}, abs=1e-12)
