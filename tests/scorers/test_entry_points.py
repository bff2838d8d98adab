"""Scorers of other packages, found by their entry points, and the template of docs/score.md."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from datacomp_flyt.demo import POOL
from datacomp_flyt.pool.parquet import open_shards
from datacomp_flyt.scorers import MetadataScorer
from datacomp_flyt.scorers.base.score import score
from tests.conftest import REPOSITORY, refusal

METADATA = POOL / "metadata"
REGISTRY = """
import sys
from datacomp_flyt.scorers.base.registry import columns_of, list_scorers

print(*list(list_scorers())[-3:], "words" in sys.modules or "torch" in sys.modules)
print(*columns_of("caption_length"), *columns_of("neg_clip_loss"))
"""
COLUMNS = ("caption_length", "negCLIPLoss")


def template(index: int = 0) -> str:
    """A class in the page's section about scorers of one's own."""
    page = (REPOSITORY / "docs" / "score.md").read_text()
    section = page.partition("## A scorer of your own")[2]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)[index]


def package(folder: Path, name: str, code: str, entries: str) -> Path:
    """An installed package of one module."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(code)
    metadata = folder / f"{name}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[datacomp_flyt.scorers]\n{entries}\n")
    return folder


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A package with the template's scorer, and one with scorers that cannot be used."""
    folder = tmp_path / "site"
    package(folder, "words", template(), "caption_length = words:CaptionLength")
    broken = "broken = faulty:Scorer\nnone = faulty:none\nvas = faulty:none"
    package(folder, "faulty", "none = object\nimport not_installed\n", broken)
    return folder


def python(packages: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """A Python process that has the packages."""
    environment = os.environ | {"PYTHONPATH": f"{packages}:{REPOSITORY}"}
    return subprocess.run(
        [sys.executable, *map(str, words)],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip


def command(packages: Path, *words: object) -> subprocess.CompletedProcess[str]:
    return python(packages, "-m", "datacomp_flyt.cli", "score", *words)


def lengths(folder: Path, longest: int) -> None:
    """Compare a folder's scores with the captions."""
    for path in sorted(METADATA.glob("*.parquet")):
        wanted = [
            min(len(text.split()), longest) for text in pq.read_table(path)["text"].to_pylist()
        ]
        assert len(set(wanted)) > 2
        made = pq.read_table(folder / path.name)
        assert made["uid"].to_pylist() == pq.read_table(path)["uid"].to_pylist()
        np.testing.assert_array_equal(made.column(1).to_numpy(), wanted)


def test_the_template_is_short() -> None:
    assert len(template().strip().splitlines()) <= 15


def test_a_scorer_of_another_package(packages: Path, tmp_path: Path) -> None:
    words = ("--scorer", "caption_length", "--metadata_dir", METADATA, "--num_workers", 1)
    ended = command(packages, *words, "--scores_dir", tmp_path / "scores", "--longest", 4)
    assert ended.returncode == 0, ended.stderr
    lengths(tmp_path / "scores" / "caption_length", 4)
    ended = command(packages, *words, "--scores_dir", tmp_path / "scores", "--longest", 5)
    assert ended.returncode == 2, "other settings"
    assert "was made with longest 4, now it is 5" in ended.stderr
    ended = command(packages, *words, "--scores_dir", tmp_path / "scores", "--column", "other")
    assert ended.returncode == 0, ended.stderr
    lengths(tmp_path / "scores" / "other", 77)


def test_it_is_listed_with_its_column_and_flags(packages: Path) -> None:
    assert "caption_length: of package words" in command(packages, "--help").stdout
    assert "--longest" in command(packages, "--scorer", "caption_length", "--help").stdout
    ended = python(packages, "-c", REGISTRY)
    assert ended.stdout.split() == ["broken", "caption_length", "none", "False", *COLUMNS], ended


IMAGES = """
class Inherited(AspectRatio):
    columns = ("inherited",)


class Bare(AspectRatio):
    columns = ("bare",)

    def __init__(self):
        super().__init__()


class Wrong(AspectRatio):
    columns = ("wrong",)

    @classmethod
    def add_arguments(cls, parser):
        super().add_arguments(parser)
        parser.add_argument("--unknown", type=int)


class Required(AspectRatio):
    columns = ("required",)

    def __init__(self, limit):
        super().__init__()
"""
ENTRIES = "\n".join(
    f"{name.lower()} = pictures:{name}"
    for name in ("AspectRatio", "Inherited", "Bare", "Wrong", "Required")
)


def test_flags_of_image_scorers_of_another_package(packages: Path, tmp_path: Path) -> None:
    """A flag reaches the scorer or is refused."""
    pytest.importorskip("open_clip")
    package(packages, "pictures", template(1) + IMAGES, ENTRIES)
    folders = ("--shards_dir", POOL / "shards", "--num_workers", 1, "--scores_dir", tmp_path)
    for name in ("aspectratio", "inherited"):
        flags = ("--largest", 0.75, "--precision", "bf16", "--batch_size", 7)
        ended = command(packages, "--scorer", name, *folders, *flags)
        assert ended.returncode == 0, ended.stderr
        column = "aspect_ratio" if name == "aspectratio" else name
        settings = json.loads((tmp_path / column / "_settings.json").read_text())
        assert (settings["largest"], settings["precision"]) == (0.75, "bf16")
        tables = [pq.read_table(path) for path in (tmp_path / column).glob("*.parquet")]
        ratios = np.concatenate([table[column].to_numpy() for table in tables])
        assert len(ratios) == 420
        assert ratios.max() == 0.75
    ended = command(packages, "--scorer", "aspectratio", *folders, "--batch_size", -5)
    assert ended.returncode == 2
    assert "--batch_size -5 is less than 1" in ended.stderr
    ended = command(packages, "--scorer", "bare", *folders, "--precision", "bf16")
    assert ended.returncode == 2
    assert "unrecognized arguments: --precision" in ended.stderr
    ended = command(packages, "--scorer", "wrong", *folders, "--unknown", 1)
    assert ended.returncode == 2
    assert "--scorer wrong has the flag --unknown" in ended.stderr
    ended = command(packages, "--scorer", "required", *folders)
    assert ended.returncode == 2
    assert "--scorer required has no flag for the parameter limit" in ended.stderr


def test_broken_packages_are_named_when_they_are_asked_for(packages: Path, tmp_path: Path) -> None:
    folders = ("--metadata_dir", METADATA, "--scores_dir", tmp_path / "scores")
    for name in ("broken", "none", "vas"):
        ended = command(packages, "--scorer", name, *folders)
        assert ended.returncode == 2
        (line,) = ended.stderr.splitlines()
        assert "package faulty" in line
    (packages / "faulty.py").write_text("none = object\n")
    assert "adds no Scorer" in command(packages, "--scorer", "none", *folders).stderr
    assert command(packages, "--scorer", "clip_score", *folders).returncode == 0


class Halves(MetadataScorer):
    """A scorer with options of all kinds, one of them large."""

    columns = ("halves",)

    def __init__(self, *, share: float = 0.5, name: str = "x", table: list[int] | None = None):
        self.share, self.name, self.table, self._seen = share, name, table or [1], 0

    def score_rows(self, shard, state, counts):  # type: ignore[no-untyped-def]
        return np.full(shard.num_rows, self.share)


def test_default_settings_and_a_scorer_as_an_object(tmp_path: Path) -> None:
    scorer = Halves(share=0.25)
    assert scorer.settings == {"share": 0.25, "name": "x"}
    folders = {"metadata_dir": METADATA, "scores_dir": tmp_path}
    report = score(scorer, num_workers=1, **folders)
    assert (report.num_scored, report.num_examples, report.failed) == (4, 420, {})
    assert report.folder == tmp_path / "halves"
    assert score(Halves(share=0.25), num_workers=1, **folders).num_finished_before == 4
    said = refusal(lambda: score(Halves(), num_workers=1, **folders))
    assert "was made with share 0.25, now it is 0.5" in said
    with pytest.raises(TypeError, match="share: options are for a scorer given by its name"):
        score(scorer, share=1, **folders)


@pytest.mark.parametrize("shape", [(104,), (105, 2), (1,), ()])
def test_scores_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    scorer = Halves()
    scorer.score_rows = lambda shard, state, counts: np.zeros(shape)  # type: ignore[method-assign]
    said = refusal(scorer.score, open_shards(str(METADATA), "--metadata_dir", 1)[0], {})
    assert f"score_rows of Halves returned scores of shape {list(shape)}, wanted [105, 1]" in said


@pytest.mark.parametrize("columns", ["text_len", (), ("a", 3), ("",), None])
def test_columns_that_are_no_names(tmp_path: Path, columns: Any) -> None:
    scorer = Halves()
    scorer.columns = columns
    said = refusal(lambda: score(scorer, metadata_dir=METADATA, scores_dir=tmp_path / "scores"))
    assert f"scorer Halves has the columns {columns!r}" in said
    assert not (tmp_path / "scores").exists()


def test_names_and_options_that_are_not_known(tmp_path: Path) -> None:
    folders = {"metadata_dir": METADATA, "scores_dir": tmp_path}
    assert "--scorer nope is not known: give one of clip_score," in refusal(
        score, "nope", **folders
    )
    with pytest.raises(TypeError, match="sauce"):
        score("clip_score", sauce=1, **folders)
