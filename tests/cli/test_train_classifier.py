"""`datacomp-flyt train_classifier`: from embeddings to scores, and bad input."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from datacomp_flyt.cli import train_classifier
from datacomp_flyt.demo import POOL as DEMO
from datacomp_flyt.pool.parquet import open_shards
from datacomp_flyt.pool.subset import write_subset
from datacomp_flyt.scorers.linear_classifier.classifier_file import load_classifier
from datacomp_flyt.scorers.linear_classifier.linear_classifier import LinearClassifier
from datacomp_flyt.scorers.linear_classifier.training_rows import RandomRows, find_embeddings
from tests.conftest import make_pool, refusal, sorted_uids, write_files
from tests.scorers.base.made import made_embeddings, write_npz


def trained_by(out: Path, *words: object) -> bytes:
    parser = argparse.ArgumentParser()
    argv = [*map(str, words), "--out", str(out)]
    train_classifier.add_arguments(parser, argv)
    assert train_classifier.run(parser.parse_args(argv)) == 0
    return out.read_bytes()


SHORT = ("--steps", 300, "--warmup", 20, "--batch_size", 32)


def demo_drawings(folder: Path) -> dict[str, Path]:
    """The demo's embeddings by who drew the emoji: a better dataset, and the pool."""
    rows: dict[str, list[np.ndarray]] = {"google": [], "twitter": []}
    texts: dict[str, list[np.ndarray]] = {"google": [], "twitter": []}
    for path in sorted((DEMO / "metadata").glob("*.parquet")):
        with np.load(path.with_suffix(".npz")) as arrays:
            for number, url in enumerate(pq.read_table(path)["url"].to_pylist()):
                name = "google" if "google" in url else "twitter"
                rows[name].append(arrays["b32_img"][number])
                texts[name].append(arrays["b32_txt"][number])
    paths = {}
    for name in rows:
        paths[name] = folder / f"{name}.npz"
        np.savez(paths[name], b32_img=np.array(rows[name]), b32_txt=np.array(texts[name]))
    return paths


@pytest.mark.parametrize("arrays", [("b32_img",), ("b32_img", "b32_txt")])
def test_real_embeddings_from_training_to_scores(
    tmp_path: Path, arrays: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """Half of the demo's faces against all of it: the other half scores above the rest."""
    faces = sorted(
        {
            caption
            for path in (DEMO / "metadata").glob("*.parquet")
            for caption in pq.read_table(path)["text"].to_pylist()
            if "face" in caption.split()
        }
    )
    positive: dict[str, list[np.ndarray]] = {name: [] for name in arrays}
    for path in sorted((DEMO / "metadata").glob("*.parquet")):
        captions = pq.read_table(path)["text"].to_pylist()
        with np.load(path.with_suffix(".npz")) as stored:
            for name, rows in positive.items():
                kept = [row for row, caption in enumerate(captions) if caption in faces[::2]]
                rows += list(stored[name][kept])
    np.savez(tmp_path / "faces.npz", **{name: np.array(rows) for name, rows in positive.items()})

    out = tmp_path / "c.safetensors"
    words = ("--positives", tmp_path / "faces.npz", "--negatives", DEMO / "metadata")
    trained_by(out, *words, "--arrays", *arrays, "--steps", 1000, "--warmup", 100)
    printed = capsys.readouterr().out
    assert f"positives: {len(rows)} examples\nnegatives: 420 examples\n" in printed
    assert "last 1,000 steps: loss 0." in printed
    assert str(out) in printed

    scorer = LinearClassifier(str(out))
    assert scorer.columns == ("IN1K-Classifier" if len(arrays) == 1 else "CC2M-Classifier",)
    assert scorer.arrays == arrays
    held_out, others = [], []
    for shard in open_shards(str(DEMO / "metadata"), "", 1):
        captions = pq.read_table(shard.path)["text"].to_pylist()
        for caption, value in zip(captions, scorer.score(shard, {}).values[:, 0], strict=True):
            if caption in faces[1::2]:
                held_out.append(float(value))
            elif caption not in faces:
                others.append(float(value))
    assert len(held_out) > 10
    higher = np.array(held_out)[:, None] > np.array(others)
    print("AUC", higher.mean(), len(held_out))
    assert higher.mean() > 0.8  # the area under the ROC curve


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    paths = demo_drawings(tmp_path)
    words = ("--positives", paths["google"], "--negatives", paths["twitter"], *SHORT)
    first = trained_by(tmp_path / "1.safetensors", *words)
    assert trained_by(tmp_path / "2.safetensors", *words) == first
    assert trained_by(tmp_path / "3.safetensors", *words, "--seed", 1) != first
    streamed = trained_by(tmp_path / "4.safetensors", *words, "--buffer_rows", 64)
    assert trained_by(tmp_path / "5.safetensors", *words, "--buffer_rows", 64) == streamed != first


def test_only_the_subsets_uids_are_positive(tmp_path: Path) -> None:
    """CC2M: those of CC12M that a score put on top."""
    made = make_pool(90)
    values = made_embeddings(90, {"b32_img": 6})["b32_img"]
    write_files(tmp_path / "all", made.metadata, 3, seed=2)
    write_npz(tmp_path / "all", made.uids, {"b32_img": values})
    chosen = range(5, 90, 4)
    uids = sorted_uids([made.uids[row] for row in chosen])
    counts = np.arange(len(uids), dtype=np.int32) % 3 + 1  # copies do not matter
    write_subset(tmp_path / "top.npy", uids, counts)
    files = find_embeddings([str(tmp_path / "all")], ["b32_img"], "--positives")
    subset = np.unique(np.load(tmp_path / "top.npy"))
    rows = RandomRows(files, np.random.default_rng(0), 1000, "--positives", subset=subset)
    assert {row.tobytes() for row in rows.draw(2000)} == {values[row].tobytes() for row in chosen}

    np.save(tmp_path / "n.npy", made_embeddings(60, {"x": 6}, 9)["x"])
    words = ("--positives", tmp_path / "all", "--negatives", tmp_path / "n.npy", *SHORT)
    top = ("--positive_uids", tmp_path / "top.npy")
    content = trained_by(tmp_path / "1.safetensors", *words, *top)
    assert content != trained_by(tmp_path / "2.safetensors", *words)

    np.save(tmp_path / "x.npy", np.arange(3))
    for bad, text in ((tmp_path / "x.npy", "is no subset"), (tmp_path / "none", "cannot be re")):
        message = refused(tmp_path, *words, "--positive_uids", bad)
        assert message.startswith(f"{bad} {text}")
    unknown_uids = sorted_uids([("0" * 31) + "1"])
    write_subset(tmp_path / "s.npy", unknown_uids)
    message = refused(tmp_path, *words, "--positive_uids", tmp_path / "s.npy")
    assert message.startswith("--positives holds no usable example")
    np.savez(tmp_path / "alone.npz", b32_img=values)
    words = ("--positives", tmp_path / "alone.npz", *words[2:])
    assert "alone.parquet" in refused(tmp_path, *words, *top)
    (tmp_path / "alone.parquet").write_bytes((tmp_path / "all/part-00000.parquet").read_bytes())
    assert "has 90 rows and the parquet file beside it 30" in refused(tmp_path, *words, *top)


# ------------------------------------------------------------------------------ bad input


def refused(folder: Path, *words: object) -> str:
    """The sentence of a run that writes nothing."""
    before = set(folder.rglob("*"))
    message = refusal(trained_by, folder / "out.safetensors", *words)
    assert set(folder.rglob("*")) == before
    return message


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--batch_size", 7), "--batch_size 7 cannot be half positives, half negatives"),
        (("--batch_size", 0), "--batch_size 0"),
        (("--steps", 0), "--steps 0 is no training"),
        (("--warmup", 300), "--warmup 300 does not end within --steps 300"),
        (("--warmup", -1), "--warmup -1"),
        (("--lr", 0), "--lr 0.0 is no learning rate"),
        (("--lr", "nan"), "--lr nan"),
        (("--seed", -1), "--seed -1 is negative"),
        (("--buffer_rows", 31), "--buffer_rows 31 is less than --batch_size 32"),
        (("--arrays", "h14_img"), "has no array 'h14_img' (it has b32_img, b32_txt)"),
        (("--negatives", "nowhere"), "nowhere is not there"),
        (("--negatives", "FOLDER/empty"), "empty holds no .npz file"),
        (("--negatives", "FOLDER/wide.npz"), "width 32 and --negatives FOLDER/wide.npz of 5"),
        (("--positives", "FOLDER/google.npz", "FOLDER/wide.npz"), "width 5 and FOLDER/google.npz"),
        (("--positives", "FOLDER/text.txt"), "text.txt is neither .npz nor .npy"),
        (("--positives", "FOLDER/text.npz"), "text.npz cannot be read as npz"),
        (("--positives", "FOLDER/text.npy"), "text.npy cannot be read as .npy"),
        (("--positives", "FOLDER/flat.npy"), "flat.npy holds float16 [5]"),
        (("--positives", "FOLDER/none.npy"), "--positives FOLDER/none.npy holds no example"),
        (("--positives", "FOLDER/nan.npy"), "--positives holds no usable example in FOLDER/nan.n"),
        (("--positives", "FOLDER/long.npy"), "embeddings that are not of unit norm in FOLDER/long"),
        (("--negatives", "FOLDER/long.npz"), "embeddings that are not of unit norm in FOLDER/long"),
        (
            ("--positives", "FOLDER/none.npy", "--arrays", "b32_img", "b32_txt"),
            "none.npy is one array and --arrays names 2",
        ),
        (("--positives", "nosuch://x"), "--positives nosuch://x cannot be listed"),
    ],
)
def test_what_is_refused(tmp_path: Path, words: tuple[object, ...], text: str) -> None:
    paths = demo_drawings(tmp_path)
    (tmp_path / "empty").mkdir()
    for suffix in ("txt", "npz", "npy"):
        (tmp_path / f"text.{suffix}").write_text("no embeddings")
    np.savez(tmp_path / "wide.npz", b32_img=made_embeddings(9, {"x": 5})["x"])
    unit = made_embeddings(40, {"x": 32})["x"]
    np.save(tmp_path / "flat.npy", unit[0, :5])
    np.save(tmp_path / "none.npy", unit[:0])
    np.save(tmp_path / "nan.npy", np.full_like(unit, np.nan))
    np.save(tmp_path / "long.npy", np.concatenate([unit, 2 * unit[:1]]))
    np.savez(tmp_path / "long.npz", b32_img=np.concatenate([unit, 2 * unit[:1]]))

    def here(word: object) -> object:
        return word.replace("FOLDER", str(tmp_path)) if isinstance(word, str) else word

    places = ("--positives", paths["google"], "--negatives", paths["twitter"])
    message = refused(tmp_path, *places, *SHORT, *map(here, words))
    assert str(here(text)) in message


def test_out_is_checked_first(tmp_path: Path) -> None:
    paths = demo_drawings(tmp_path)
    words = ("--positives", paths["google"], "--negatives", paths["twitter"], *SHORT)
    assert "is not a .safetensors file" in refusal(trained_by, tmp_path / "c.pt", *words)
    (tmp_path / "d.safetensors").mkdir()
    assert "is a folder" in refusal(trained_by, tmp_path / "d.safetensors", *words)


def test_lengths_are_brought_to_one_when_asked(tmp_path: Path) -> None:
    """Then they teach nothing: without, the longer rows would be told by their length."""
    paths = demo_drawings(tmp_path)
    with np.load(paths["google"]) as google:
        rows = google["b32_img"].astype(np.float32)
    found = []
    for factor in (1, 300):
        np.save(tmp_path / "p.npy", rows * factor)
        words = ("--positives", tmp_path / "p.npy", "--negatives", paths["twitter"], *SHORT)
        out = tmp_path / f"{factor}.safetensors"
        trained_by(out, *words, "--renormalize")
        found.append(load_classifier(out).weight)
    np.testing.assert_allclose(found[0], found[1], atol=1e-3)
    assert np.abs(found[0]).max() > 0.1
