"""Files of a run's folder: the initial subset, external scores, embeddings, the result."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

pytest.importorskip("webdataset", reason="the train extra is not installed")
from datacomp_flyt.demo import POOL
from datacomp_flyt.files.digest import file_digest
from datacomp_flyt.pool.parquet import open_shards
from datacomp_flyt.pool.subset import read_subset
from datacomp_flyt.pool.uids import encode_uids
from datacomp_flyt.self_filtering import delete_embeddings, initial_subset, self_filter
from datacomp_flyt.self_filtering.finalize import final_subset, finalize
from datacomp_flyt.self_filtering.link_external_scores import link_external_scores
from datacomp_flyt.self_filtering.plan import SelfFilterOptions
from datacomp_flyt.tars.uids import uids_of_tar
from tests.conftest import hex_uids, refusal, write_parquet
from tests.flyt.tars import pair, uid_of, write_pairs, write_tar
from tests.oracles.selection import format_uid


def run(main: Callable[[], None], *words: object) -> None:
    with mock.patch.object(sys, "argv", ["module", *map(str, words)]):
        main()


def test_initial_subset_is_the_pool(tmp_path: Path) -> None:
    write_pairs(tmp_path / "shards", shards=3, rows=8)
    flags = ("--shards_dir", tmp_path / "shards", "--halves")
    run(initial_subset.main, *flags, "--draws", 5, "--out", tmp_path / "few")
    uids, counts = read_subset(tmp_path / "few" / "subset.npy")
    assert [format_uid(uid) for uid in uids] == sorted(map(uid_of, range(24)))
    assert (counts == 1).all()
    run(initial_subset.main, *flags, "--draws", 60, "--out", tmp_path / "many")
    counts = read_subset(tmp_path / "many" / "subset.npy")[1]
    assert sorted(counts) == [2] * 12 + [3] * 12
    a, b = (np.load(tmp_path / "many" / f"subset_{half}.npy") for half in "ab")
    assert len(a) + len(b) == 60
    assert not set(a.tolist()) & set(b.tolist())


def test_a_table_beside_a_tar_lists_the_downloads(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "0.tar", map(pair, range(4)))
    found = uids_of_tar(str(tar))
    assert encode_uids(found.uids).to_pylist() == [uid_of(n) for n in range(4)]
    assert (found.opened, found.problem) == (True, None)
    uids = [uid_of(0), *hex_uids(1), uid_of(2)]
    table = {"uid": uids, "status": ["success", "failed", "success"]}
    write_parquet(tmp_path / "0.parquet", table)
    found = uids_of_tar(str(tar))
    assert encode_uids(found.uids).to_pylist() == [uids[0], uids[2]]
    assert (found.opened, found.failed, found.problem) == (False, 1, None)


def test_pools_without_an_initial_subset(tmp_path: Path) -> None:
    for name, numbers in (("0", range(4)), ("1", range(3, 6))):
        write_tar(tmp_path / "twice" / f"{name}.tar", map(pair, numbers))
    message = refusal(initial_subset.read_uids, str(tmp_path / "twice"))
    assert uid_of(3) in message
    write_tar(tmp_path / "none" / "0.tar", [{"jpg": b"", "json": b"{}"}])
    assert "no sample with a uid" in refusal(initial_subset.read_uids, str(tmp_path / "none"))
    odd = {"jpg": b"", "json": json.dumps({"uid": "x"}).encode()}
    write_tar(tmp_path / "odd" / "0.tar", [odd])
    assert "'x'" in refusal(initial_subset.read_uids, str(tmp_path / "odd"))


def test_external_scores_are_read_with_the_round_s_own(tmp_path: Path) -> None:
    external, out = tmp_path / "external", tmp_path / "scores"
    for folder in (external / "vas", external, out / "own"):
        folder.mkdir(parents=True, exist_ok=True)
        write_parquet(folder / "t.parquet", {"uid": hex_uids(2), folder.name: [1.0, 2.0]})
    for _ in range(2):
        assert link_external_scores(external, out) == 2
    found = open_shards(str(out), "--scores_dir", 1, recursive=True)
    assert sorted(name for shard in found for name in shard.types if name != "uid") == [
        "external", "own", "vas",
    ]  # fmt: skip
    (tmp_path / "empty").mkdir()
    assert "no .parquet" in refusal(link_external_scores, tmp_path / "empty", out)
    assert "no local folder" in refusal(link_external_scores, tmp_path / "nowhere", out)


def test_only_embeddings_are_deleted(tmp_path: Path) -> None:
    folder = tmp_path / "metadata"
    folder.mkdir()
    for name in ("0.npz", "1.npz", "0.parquet", "settings.json"):
        (folder / name).touch()
    run(delete_embeddings.main, tmp_path)
    run(delete_embeddings.main, tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["0.parquet", "settings.json"]


def test_the_result_of_a_run(tmp_path: Path) -> None:
    assert "is no run" in refusal(final_subset, tmp_path)
    for number in (0, 1, 2):
        (tmp_path / f"round_{number}").mkdir()
        (tmp_path / f"round_{number}" / "subset.npy").write_bytes(bytes([number]))
    assert "is not finished" in refusal(final_subset, tmp_path)
    for rounds in (1, 2):
        finalize(tmp_path, rounds)
        assert final_subset(tmp_path).read_bytes() == bytes([rounds])
    (tmp_path / "subset.npy").write_bytes(b"another")
    assert str(tmp_path / "round_2" / "subset.npy") in refusal(final_subset, tmp_path)


def test_the_result_of_an_earlier_version(tmp_path: Path) -> None:
    """Runs of version 0.1.0 end with mix.npy."""
    (tmp_path / "round_0").mkdir()
    (tmp_path / "mix.npy").write_bytes(b"subset")
    note = {"rounds": 1, "mix": file_digest(tmp_path / "mix.npy")}
    (tmp_path / "finished.json").write_text(json.dumps(note))
    assert final_subset(tmp_path) == tmp_path / "mix.npy"
    (tmp_path / "mix.npy").write_bytes(b"another")
    assert str(tmp_path / "round_1" / "mix.npy") in refusal(final_subset, tmp_path)


@pytest.mark.parametrize("ended", [False, True])
def test_a_run_of_an_earlier_version_is_not_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: bool
) -> None:
    """Its files have other names, so its rounds would be trained again beside them."""
    pytest.importorskip("open_clip")
    monkeypatch.setattr(self_filter, "run_steps", lambda *args, **options: None)
    folder = tmp_path / "run"
    (folder / "round_0").mkdir(parents=True)
    (folder / "round_0" / "mix.npy").write_bytes(b"mix of round 0")
    if ended:
        (folder / "mix.npy").write_bytes(b"mix")
        note = {"rounds": 1, "mix": file_digest(folder / "mix.npy")}
        (folder / "finished.json").write_text(json.dumps(note))
    before = files_of(folder)
    options = SelfFilterOptions(
        trainer=("-m", "open_clip_train.main", "--model", "flyt-demo"),
        shards_dir=str(POOL / "shards"),
        out=str(folder),
        samples_per_round=100,
        reports=False,
    )
    message = refusal(self_filter.self_filter, options)
    assert message.startswith(f"--out {folder} holds a run of an earlier version")
    assert message.endswith("give another --out")
    assert files_of(folder) == before


def files_of(folder: Path) -> dict[str, bytes]:
    """Read all files of a run, except for locks."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): path.read_bytes() for path in paths if "lock" not in path.name}
