"""`--name e_flyt`: subsets from embeddings, and refused input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from datacomp_flyt.mixing import save_mixing_model
from datacomp_flyt.mixing.m_flyt import PAPER_MODEL
from datacomp_flyt.pool.pool import read_pool
from datacomp_flyt.samplers import hard_cap_counts, no_cap_counts, soft_cap_counts
from datacomp_flyt.scorers import e_flyt_scores, save_glu_head
from tests.baselines_plugin.job import Job, as_command, assert_refused, in_process
from tests.conftest import make_pool
from tests.oracles import selection
from tests.scorers.base.made import flyt_file, made_embeddings, made_head, write_npz

POOL = make_pool()
HEAD = made_head(8, 12)
ARRAYS = made_embeddings(len(POOL.uids))
SCS = ("--num_samples", 400, "--repetition_penalty", 0.4)

FilesIn = Callable[[], dict[str, bytes]]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    made = Job(POOL, tmp_path).write(parts=2, seed=3)
    write_npz(made.metadata, POOL.uids, ARRAYS)
    save_glu_head(HEAD, tmp_path / "head.safetensors")
    return made


def flyt(job: Job, *flags: object, model: str = "head.safetensors") -> list[str]:
    named = ("--name", "e_flyt", "--scoring_model", job.folder / model)
    return job.flags(*named, *flags, table=False)


@pytest.mark.parametrize(
    "flags",
    [
        SCS,
        (*SCS, "--sampling_batch_size", 7),
        ("--sampling", "hcs", "--num_samples", 200, "--frequency_limit", 5),
        ("--sampling", "no_cap", "--num_samples", 500),
        ("--sampling", "top_fraction", "--fraction", 0.3),
    ],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_every_sampling(job: Job, flags: tuple[object, ...], workers: int) -> None:
    assert in_process(*flyt(job, *flags, "--num_workers", workers)).code == 0
    pool = read_pool(str(job.metadata), 1)
    scores, uids = e_flyt_scores(HEAD, pool), pool.uids
    if "top_fraction" in flags:
        counts = np.array(selection.top_fraction(scores.tolist(), uids.tolist(), 0.3))
    elif "hcs" in flags:
        counts = hard_cap_counts(scores, uids, 200, 5, 0)
    elif "no_cap" in flags:
        counts = no_cap_counts(scores, uids, 500, 0)
    else:
        counts = soft_cap_counts(scores, uids, 400, 0.4, 0, 7 if 7 in flags else 1)
    assert np.load(job.save_path).tolist() == np.repeat(uids, counts).tolist()


def test_saved_scores_make_the_same_subset_as_a_column(job: Job, tmp_path: Path) -> None:
    saved = tmp_path / "flyt_scores" / "flyt.parquet"
    assert in_process(*flyt(job, *SCS, "--save_scores", saved)).code == 0
    table = pq.read_table(saved)
    assert table.column_names == ["uid", "e_flyt"]
    assert len(table) == len(POOL.uids)
    first = job.save_path.read_bytes()
    again = job.flags("--name", "scs", "--column", "e_flyt", *SCS, table=False)
    assert in_process(*again, "--scores_dir", str(saved.parent)).code == 0
    assert job.save_path.read_bytes() == first


def test_as_a_command_with_dropped_rows(job: Job) -> None:
    spoilt = {**ARRAYS, "b32_img": ARRAYS["b32_img"].copy()}
    spoilt["b32_img"][5] = np.nan
    write_npz(job.metadata, POOL.uids, spoilt)
    flags = flyt(job, "--sampling", "top_fraction", "--fraction", 1)
    assert_refused(as_command(*flags), "embeddings of 1 examples", ".npz row ", "--drop_nonfinite")
    assert not job.save_path.exists()
    assert as_command(*flags, "--drop_nonfinite").code == 0
    assert len(np.load(job.save_path)) == len(POOL.uids) - 1


def no_npz(job: Job) -> None:
    (job.metadata / "part-00001.npz").unlink()


def no_array(job: Job) -> None:
    write_npz(job.metadata, POOL.uids, {"b32_img": ARRAYS["b32_img"]})


def narrow(job: Job) -> None:
    write_npz(
        job.metadata, POOL.uids, made_embeddings(len(POOL.uids), {"b32_img": 4, "b32_txt": 3})
    )


def from_images(job: Job) -> None:
    flyt_file(job.folder / "model", HEAD.tensors())


def ours_from_images(job: Job) -> None:
    save_glu_head(made_head(8, 12, arrays=None), job.folder / "model.safetensors")


def mixing_model(job: Job) -> None:
    save_mixing_model(PAPER_MODEL, job.folder / "model.safetensors")


AT_FAULT: dict[str, tuple[Callable[[Job], None], str, list[str]]] = {
    "no npz": (no_npz, "head.safetensors", ["part-00001.npz is not there", "--download_npz"]),
    "no array": (no_array, "head.safetensors", ["part-00000.npz has no array 'b32_txt'"]),
    "another width": (narrow, "head.safetensors", ["4 + 3 columns", "head.safetensors takes 8"]),
    "flyt.pt": (from_images, "model", ["GELU", "--name scs --column FLYT"]),
    "a head from images": (ours_from_images, "model.safetensors", ["GELU", "npz embeddings"]),
    "a mixing model": (mixing_model, "model.safetensors", ["use it with --name m_flyt"]),
    "no model": (lambda _: None, "nothing.pt", ["nothing.pt is not a file"]),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "model", "message"), AT_FAULT.values(), ids=AT_FAULT.keys())
def test_bad_files_are_refused(
    job: Job, files_in: FilesIn, spoil: Callable[[Job], None], model: str, message: list[str]
) -> None:
    spoil(job)
    before = files_in()
    assert_refused(in_process(*flyt(job, *SCS, model=model)), *message)
    assert files_in() == before


@pytest.mark.parametrize("model", ["head.safetensors", "flyt.pt"])
def test_m_flyt_refuses_a_scoring_head(job: Job, model: str) -> None:
    flyt_file(job.folder / "flyt.pt", HEAD.tensors())
    flags = ("--name", "m_flyt", "--scoring_model", job.folder / model, *SCS)
    assert_refused(in_process(*job.flags(*flags)), model, "use it with --name e_flyt")


def test_bad_flags_are_refused(job: Job) -> None:
    for flags, said in (
        (("--scores_dir", job.scores), "--scores_dir has no meaning for --name e_flyt"),
        (("--allow_partial_scores",), "--allow_partial_scores has no meaning"),
        (("--save_scoring_model", "m.safetensors"), "--save_scoring_model has no meaning"),
        (("--column", "FLYT"), "--column has no meaning"),
        (("--allow_missing_scores",), "--allow_missing_scores has no meaning"),
        (("--work_dir", job.folder / "work"), "--work_dir is for methods that mix score columns"),
    ):
        assert_refused(in_process(*flyt(job, *SCS, *flags)), said)
    assert not (job.folder / "work").exists()
    bare = job.flags("--name", "e_flyt", *SCS, table=False)
    assert_refused(in_process(*bare), "--name e_flyt wants --scoring_model")
