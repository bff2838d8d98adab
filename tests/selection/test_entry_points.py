"""Sampling methods and scorers of other packages, in a Python that has these packages."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.baselines_plugin.job import Job
from tests.conftest import REPOSITORY, make_pool, write_files

POOL = make_pool()
SAMPLER = """
import numpy as np
from datacomp_flyt import InputError, Sampling

def check(*, top_k=None):
    if top_k is None:
        raise InputError("top_k wants --top_k")

def counts(scores, uids, *, pool_size, seed, num_workers, top_k):
    counts = np.zeros(len(scores), np.int32)
    counts[np.argsort(-scores, kind="stable")[:top_k]] = 1
    return counts

TOP_K = Sampling("top_k", "the k highest scores", counts,
                 {"top_k": {"type": int, "help": "top_k: how many to keep"}}, check)
"""
SCORER = '''
from datacomp_flyt.scorers.base.scorer import Scorer

class Caption(Scorer):
    """The length of a caption."""
    columns = ("caption_length",)
'''
GROUPS = {
    "datacomp_flyt.samplers": {"top_k": "my_sampler:TOP_K"},
    "datacomp_flyt.scorers": {"caption": "my_scorer:Caption"},
}


def install(
    folder: Path, package: str, groups: Mapping[str, Mapping[str, str]], **modules: str
) -> None:
    """Write modules and the metadata that pip would."""
    info = folder / f"{package.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = (
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in names.items())
        for group, names in groups.items()
    )
    (info / "entry_points.txt").write_text("\n".join(lines))
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)


def run(packages: Path, *words: object) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(REPOSITORY), str(packages)])
    return subprocess.run(
        [sys.executable, *map(str, words)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    install(folder, "my-package", GROUPS, my_sampler=SAMPLER, my_scorer=SCORER)
    return folder


@pytest.fixture
def job(tmp_path: Path) -> Job:
    job = Job(POOL, tmp_path).write(2, 1)
    lengths = {"uid": POOL.uids, "caption_length": np.arange(120.0)}
    write_files(job.scores / "more", lengths)
    return job


def selection(job: Job, *flags: object) -> list[object]:
    return ["-m", "baselines_plugin", *job.flags(*flags)]


def test_a_sampler_of_another_package(packages: Path, job: Job) -> None:
    wanted = np.argsort(-POOL.scores["FLYT"])[:7]
    for flags in (
        ("--name", "top_k", "--column", "FLYT", "--top_k", 7),
        ("--name", "plain_sum", "--score_columns", "FLYT", "--sampling", "top_k", "--top_k", 7),
    ):
        job.save_path.unlink(missing_ok=True)
        ended = run(packages, *selection(job, *flags))
        assert (ended.returncode, ended.stderr) == (0, "")
        assert job.subset_is(np.isin(np.arange(120), wanted).astype(int))
    ended = run(packages, *selection(job, "--name", "top_k", "--column", "FLYT"))
    assert ended.returncode == 2
    assert ended.stderr.endswith(": error: top_k wants --top_k\n")
    ended = run(packages, *selection(job, "--name", "dfn", "--sampling", "no_cap", "--top_k", 3))
    assert "--top_k has no meaning for --name dfn with sampling no_cap" in ended.stderr
    helped = " ".join(run(packages, "-m", "baselines_plugin", "--help").stdout.split())
    for words in ("top_k: how many to keep", "top_k: samples --column (package my-package)"):
        assert words in helped


def test_a_sampler_in_python(packages: Path, job: Job) -> None:
    program = (
        "import sys, datacomp_flyt as flyt; metadata, scores, path = sys.argv[1:]; "
        "flyt.select('top_k', metadata_dir=metadata, scores=scores, save_path=path, "
        "column='FLYT', top_k=7)"
    )
    ended = run(packages, "-c", program, job.metadata, job.scores, job.save_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert len(np.load(job.save_path)) == 7


def test_the_column_of_a_scorer_of_another_package(packages: Path, job: Job) -> None:
    top = ("--sampling", "top_fraction", "--fraction", 0.25)
    saved = job.folder / "saved.parquet"
    ended = run(packages, *selection(job, "--name", "caption", *top, "--save_scores", saved))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert job.subset_is(np.arange(120) >= 90)
    assert pq.read_table(saved).column_names == ["uid", "caption"]
    ended = run(packages, *selection(job, "--name", "caption", "--column", "FLYT", *top))
    assert ended.returncode == 0
    assert not job.subset_is(np.arange(120) >= 90)
    helped = " ".join(run(packages, "-m", "baselines_plugin", "--help").stdout.split())
    assert "caption: the column that scorer caption writes" in helped
    assert helped.index(" m_flyt: ") < helped.index(" caption: ")
    bare = ("--name", "caption", "--metadata_dir", job.metadata, "--save_path", saved, *top)
    said = run(packages, "-m", "baselines_plugin", *bare).stderr
    assert "no column 'caption_length' (made by scorer caption) in the metadata, which has" in said
    assert said.endswith("give the --scores_dir of `datacomp-flyt score --scorer caption`\n")
    words = ("-m", "datacomp_flyt.cli", "score", "--scorer", "caption", "--help")
    assert "caption: The length of a caption." in run(packages, *words).stdout


TWICE = {"datacomp_flyt.samplers": {"top_k": "my_sampler:TOP_K"}}
TAKEN = {"datacomp_flyt.samplers": {"scs": "my_sampler:TOP_K"}}
ODD = {"datacomp_flyt.samplers": {"odd": "my_sampler:counts"}}
GONE = {"datacomp_flyt.samplers": {"gone": "not_there:X"}}
BROKEN = {"datacomp_flyt.samplers": {"broken": "broken:X"}}


@pytest.mark.parametrize(
    ("groups", "name", "words"),
    [
        (TWICE, "top_k", "packages bad-one and my-package add 'top_k'"),
        (TAKEN, "scs", "package bad-one adds 'scs'"),
        (ODD, "odd", "(my_sampler:counts), adds no Sampling"),
        (GONE, "gone", "cannot be imported (ModuleNotFoundError: No module named 'not_there')"),
        (BROKEN, "broken", "cannot be imported (RuntimeError: of its own)"),
    ],
)
def test_packages_at_fault(
    packages: Path, job: Job, groups: dict[str, dict[str, str]], name: str, words: str
) -> None:
    """They are reported when they are asked for, by either flag, and only then."""
    install(packages, "bad-one", groups, broken="raise RuntimeError('of its own')")
    others = "--name", "dfn", "--sampling", "no_cap", "--num_samples", 50
    assert run(packages, *selection(job, *others)).returncode == 0
    job.save_path.unlink()
    for flags in (
        ("--name", name, "--column", "FLYT"),
        ("--name", "dfn", "--sampling", name, "--flag_of_its_own", 1),
    ):
        ended = run(packages, *selection(job, *flags))
        assert ended.returncode == 2
        assert words in ended.stderr
        assert "bad-one" in ended.stderr
        assert "Traceback" not in ended.stderr
    assert not job.save_path.exists()
