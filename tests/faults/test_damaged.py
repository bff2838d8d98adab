"""Files that are truncated, have a flipped bit, or have another format than their suffix."""

from __future__ import annotations

import contextlib
import gzip
import io
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datacomp_flyt.scorers.e_flyt.glu_head_file import save_glu_head
from tests.baselines_plugin.job import Job, Outcome, assert_refused, in_process
from tests.baselines_plugin.large_pool import small_slices
from tests.conftest import make_pool
from tests.scorers.base.made import B32, made_embeddings, made_head

POOL = make_pool(600)
DRAWS = ("--num_samples", 900, "--repetition_penalty", 0.4)
MIX = ("--name", "m_flyt", "--scoring_model", "paper", *DRAWS)
FLYT = ("--name", "e_flyt", "--scoring_model", "head.safetensors", *DRAWS)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """Make a pool of two files with npz, a score table and a head."""
    monkeypatch.chdir(tmp_path)
    job = Job(POOL, tmp_path).write(2)
    for seed, path in enumerate(sorted(job.metadata.iterdir())):
        np.savez(path.with_suffix(".npz"), **made_embeddings(300, dict.fromkeys(B32, 4), seed))
    save_glu_head(made_head(8), tmp_path / "head.safetensors")
    return job


def cut(content: bytes, rng: random.Random) -> list[bytes]:
    sizes = [0, 1, 100, len(content) // 2, len(content) - 1000, len(content) - 1]
    return [content[:size] for size in (*sizes, rng.randrange(len(content)))]


def flipped(content: bytes, rng: random.Random, num_copies: int = 40) -> list[bytes]:
    copies = []
    for _ in range(num_copies):
        changed = bytearray(content)
        changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        copies.append(bytes(changed))
    return copies


def npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, **made_embeddings(300, dict.fromkeys(B32, 4)))
    return file.getvalue()


def other_kinds(content: bytes) -> dict[str, bytes]:
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        member = tarfile.TarInfo("a.txt")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    page = b"<!DOCTYPE html><title>503</title>" + b"try again later " * 500
    kinds = {"npz": npz(), "tar": tar.getvalue(), "html": page, "zeros": bytes(5000)}
    return {**kinds, "gzip": gzip.compress(content), "json": b'{"error": "busy"}'}


def not_npz(content: bytes) -> dict[str, bytes]:
    """Return files that are not npz; a tar of an npz is a valid zip, which is read from its end."""
    kinds = other_kinds(content)
    return {kind: kinds[kind] for kind in kinds if kind not in ("npz", "tar")}


def in_memory(job: Job, *flags: object) -> Outcome:
    return in_process(*job.flags(*flags))


def on_npz(job: Job) -> Outcome:
    return in_process(*job.flags(*FLYT, table=False))


def in_files(job: Job, *flags: object) -> Outcome:
    with small_slices():
        return in_process(*job.flags(*flags, "--work_dir", "work"))


@pytest.mark.parametrize("select", [in_memory, in_files])
@pytest.mark.parametrize("folder", ["metadata", "scores"])
def test_parquet_cut_or_mislabelled(job: Job, folder: str, select: Callable[..., Outcome]) -> None:
    path = sorted((job.folder / folder).glob("*.parquet"))[1]
    whole = path.read_bytes()
    for content in (*cut(whole, random.Random(0)), *other_kinds(whole).values()):
        path.write_bytes(content)
        assert_refused(select(job, *MIX), path)
        assert not job.save_path.exists()
    path.write_bytes(whole)
    assert select(job, *MIX).code == 0


@pytest.mark.parametrize("folder", ["metadata", "scores"])
def test_parquet_with_a_bit_flipped(job: Job, folder: str) -> None:
    """The file is refused or read; parquet has no checksums, so a changed score is not detected."""
    assert in_memory(job, *MIX).code == 0
    path = sorted((job.folder / folder).glob("*.parquet"))[1]
    whole, codes = path.read_bytes(), []
    for content in flipped(whole, random.Random(1)):
        path.write_bytes(content)
        outcome = in_memory(job, *MIX)
        codes.append(outcome.code)
        if outcome.code:
            assert_refused(outcome, job.folder)
    assert {*codes} == {0, 2}


def test_npz_damaged(job: Job) -> None:
    """zip has checksums, so the damage of an accepted file is in bytes that are not read."""
    path = sorted(job.metadata.glob("*.npz"))[1]
    whole, rng = path.read_bytes(), random.Random(2)
    assert on_npz(job).code == 0
    wanted = job.save_path.read_bytes()
    parquet = path.with_suffix(".parquet").read_bytes()
    kinds = {**not_npz(whole), "parquet": parquet}
    for content in (*cut(whole, rng), *kinds.values()):
        path.write_bytes(content)
        assert_refused(on_npz(job), path)
    codes = []
    for content in flipped(whole, rng):
        path.write_bytes(content)
        outcome = on_npz(job)
        codes.append(outcome.code)
        if outcome.code:
            assert_refused(outcome, path)
        else:
            assert job.save_path.read_bytes() == wanted
    assert codes.count(2) > len(codes) // 2


def test_score(job: Job, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    """The message names the damaged shard, and the other shards are scored."""
    pytest.importorskip("torch")
    from datacomp_flyt.cli import main
    from datacomp_flyt.scorers.base import score as scoring
    from tests.cli.scoring import files_in
    from tests.engines.here import Here

    monkeypatch.setattr(scoring, "make_engine", lambda *_, **__: Here())

    def score(name: str) -> tuple[int, str]:
        flags = ("--metadata_dir", str(job.metadata), "--source", "npz", "--retries", "1")
        with pytest.raises(SystemExit) as ended:
            main(["score", "--scorer", "clip_score", "--scores_dir", name, *flags])
        return int(ended.value.code or 0), capsys.readouterr().err

    assert score("whole")[0] == 0
    whole = files_in(job.folder / "whole")
    path = sorted(job.metadata.glob("*.npz"))[0]
    content = path.read_bytes()
    kinds, rng = not_npz(content), random.Random(3)
    damaged = [*cut(content, rng), *kinds.values()]
    for number, each in enumerate((*damaged, *flipped(content, rng, 20))):
        path.write_bytes(each)
        code, said = score(f"{number}")
        if number < len(damaged):
            assert code == 1
        if code:
            assert f"shard part-00000 failed: {path} cannot be read" in said
        else:
            assert files_in(job.folder / f"{number}") == whole
        assert any("part-00001" in name for name in files_in(job.folder / f"{number}"))
        path.write_bytes(content)
        if number % 8 == 0:
            assert score(f"{number}")[0] == 0
            assert files_in(job.folder / f"{number}") == whole


def test_tars_damaged(tmp_path: Path) -> None:
    """A reader yields samples, or raises the one exception for unreadable tars."""
    pytest.importorskip("webdataset")
    from datacomp_flyt.demo import POOL as DEMO
    from datacomp_flyt.tars.samples import UnreadableShard, read_tar

    source = sorted((DEMO / "shards").glob("*.tar"))[0]
    content, rng = source.read_bytes(), random.Random(4)
    whole = [sample["json"] for sample in read_tar(str(source))]
    path = tmp_path / "0.tar"
    kinds = other_kinds(content)
    for kind in ("tar", "gzip", "zeros"):  # these are tars; the last has no member
        del kinds[kind]
    for each in (*cut(content, rng)[:4], *kinds.values()):
        path.write_bytes(each)
        with pytest.raises(UnreadableShard):
            list(read_tar(str(path)))
    for each in (content[:-1], content[:-1000]):  # cuts in the zeros at the end
        path.write_bytes(each)
        assert [sample["json"] for sample in read_tar(str(path))] == whole
    for each in flipped(content, rng, 100):
        path.write_bytes(each)
        with contextlib.suppress(UnreadableShard):
            assert len(list(read_tar(str(path)))) <= len(whole) + 1
