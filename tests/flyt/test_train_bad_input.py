"""Wrong input ends with one sentence and exit code 2, and no file is written."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")
pytest.importorskip("webdataset")

from datacomp_flyt.installation import install_command
from tests.conftest import REPOSITORY, write_parquet
from tests.flyt import runs
from tests.flyt.runs import (
    ARRAYS,
    COLUMNS,
    SMALL_MODEL,
    Data,
    make_data,
    metrics_of,
    noise_image,
    train,
    write_labels,
)
from tests.flyt.tars import uid_of, write_tar

Refused = Callable[..., str]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, data: Data) -> Refused:
    """Return the message of a run with these flags."""

    def run(features: str = "scores", **changes: Any) -> str:
        output = tmp_path / "out"
        capsys.readouterr()
        code = train({**data.flags(output, features), **changes})
        message = capsys.readouterr().err
        assert code == 2, message
        assert len(message.splitlines()) == 1, message
        assert message.startswith("datacomp-flyt train: error: ")
        assert not output.is_dir() or not list(output.iterdir())
        return message

    return run


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"score_columns": [COLUMNS[0], "beauty"]}, "'beauty'"),
        ({"score_columns": [COLUMNS[0], COLUMNS[0]]}, "--score_columns"),
        ({"metadata_dir": None}, "--scores_dir"),
        ({"metadata_dir": "no/such/folder"}, "no/such/folder"),
        ({"scores_dir": "no/such/folder"}, "--scores_dir no/such/folder"),
        ({"train_data": "no/such/folder"}, "--train_data no/such/folder"),
        ({"downstream_dir": "no/such/folder"}, "--downstream_dir no/such/folder"),
        ({"downstream_tasks": ["pets", "birds"]}, "'birds'"),
        ({"downstream_tasks": ["pets", "pets"]}, "'pets'"),
        ({"upstream_batch_size": 9}, "--upstream_batch_size 9"),
        ({"downstream_batch_size": 9}, "--downstream_batch_size 9"),
        ({"upstream_batch_size": 256}, "--train_data"),
        ({"downstream_batch_size": 256}, "--downstream_dir"),
        ({"reference_lr": -1}, "--reference_lr is -1"),
        ({"num_steps": 0}, "--num_steps is 0"),
        ({"device": "toaster"}, "--device toaster"),
        ({"device": "cuda:99"}, "--device cuda:99"),
        ({"reference_model": "ViT-B-33"}, "--reference_model ViT-B-33"),
        ({"reference_init": "none.pt"}, "--reference_init none.pt"),
        ({"preset": "m_flyt_base", "num_streams": 2}, "--reference_init is missing"),
        ({"scoring_init": "none.pt"}, "--scoring_init none.pt"),
    ],
)
def test_flags(refused: Refused, changes: dict[str, Any], named: str) -> None:
    assert named in refused(**changes)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"metadata_dir": None}, "--metadata_dir"),
        ({"embedding_arrays": ["b32_img", "b16_txt"]}, "'b16_txt'"),
        ({"cosine_start": True, "glu_layers": 2}, "--cosine_start"),
        ({"cosine_start": True, "embedding_arrays": ["b32_img"]}, "--cosine_start"),
        ({"cosine_start": True, "embedding_arrays": [*ARRAYS, *ARRAYS]}, "--cosine_start"),
        ({"glu_hidden_ratio": 0.01}, "--glu_hidden_ratio"),
    ],
)
def test_flags_of_e_flyt(refused: Refused, changes: dict[str, Any], named: str) -> None:
    assert named in refused("embeddings", **changes)


def test_flags_of_an_extractor(refused: Refused, tmp_path: Path) -> None:
    assert "--extractor_model ViT-B-33" in refused("images", extractor_model="ViT-B-33")
    assert "--extractor_init none.pt" in refused("images", extractor_init="none.pt")


@pytest.mark.parametrize(
    "changes",
    [
        {"vision_cfg": SMALL_MODEL["vision_cfg"] | {"image_size": 48}},
        {"text_cfg": SMALL_MODEL["text_cfg"] | {"context_length": 20}},
    ],
    ids=["pixels", "tokens"],
)
def test_an_extractor_of_another_input(
    refused: Refused, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """Extractor and reference model must have the same image size and context length."""
    path = tmp_path / f"flyt-test-other-{next(iter(changes))}.json"
    path.write_text(json.dumps(SMALL_MODEL | changes))
    assert "--extractor_model" in refused("images", extractor_model=path)


def test_a_scoring_model_of_other_columns(refused: Refused, data: Data, tmp_path: Path) -> None:
    flags = {**data.flags(tmp_path / "one"), "num_steps": 1, "score_columns": [COLUMNS[0]]}
    assert train(flags) == 0
    message = refused(scoring_init=tmp_path / "one" / "scoring_model.safetensors")
    assert "--scoring_init" in message
    assert COLUMNS[1] in message


def test_a_checkpoint_of_another_architecture(refused: Refused, tmp_path: Path) -> None:
    torch.save({"visual.proj": torch.ones(3, 3)}, tmp_path / "c.pt")
    message = refused(reference_init=tmp_path / "c.pt")
    assert f"--reference_init {tmp_path / 'c.pt'} is not a flyt-test-small" in message
    message = refused("images", extractor_init=tmp_path / "c.pt")
    assert "--extractor_init" in message


def test_missing_scores_are_refused(refused: Refused, data: Data, tmp_path: Path) -> None:
    """Score tables with missing uids, and with a NaN, are refused."""
    uids = [uid_of(index) for index in range(runs.PAIRS)]
    scores = np.linspace(0, 1, runs.PAIRS)
    (tmp_path / "s").mkdir()
    write_parquet(tmp_path / "s" / "half.parquet", {"uid": uids[::2], "mine": scores[::2]})
    flags = {"scores_dir": tmp_path / "s", "score_columns": ["mine", COLUMNS[0]]}
    assert "--allow_partial_scores" in refused(**flags)
    scores[5] = np.nan
    (tmp_path / "s" / "half.parquet").unlink()
    write_parquet(tmp_path / "s" / "whole.parquet", {"uid": uids, "mine": scores})
    assert "--drop_nonfinite" in refused(**flags)


def test_no_npz(refused: Refused, data: Data, tmp_path: Path) -> None:
    for path in data.metadata.glob("*.parquet"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    message = refused("embeddings", metadata_dir=tmp_path)
    assert ".npz is not there" in message


@pytest.mark.parametrize(
    ("labels", "named"),
    [([0, 1, 2, 3] * 6, "label 3"), ([0, -1, 1, 2] * 6, "label -1")],
)
def test_labels_out_of_range(
    refused: Refused, tmp_path: Path, labels: list[int], named: str
) -> None:
    """The message has the number of class names."""
    write_labels(tmp_path / "owls", ("cat", "dog", "owl"), labels)
    message = refused(downstream_dir=tmp_path / "owls", downstream_tasks=None)
    assert named in message
    assert "3 class names" in message


def test_incomplete_tasks_are_refused(refused: Refused, data: Data, tmp_path: Path) -> None:
    def wrong(**changes: Any) -> str:
        return refused(downstream_dir=tmp_path / "tasks", downstream_tasks=["owls"], **changes)

    folder = tmp_path / "tasks" / "owls"
    folder.mkdir(parents=True)
    assert "'owls' has no .tar file" in wrong()
    write_labels(folder, ("cat", "dog"), rows=0)
    assert "no example" in wrong()
    write_labels(folder, ("cat", "dog"))
    (folder / "classnames.txt").unlink()
    message = wrong()
    assert "class names" in message
    assert "--evaluation_dir" in message
    evaluation = tmp_path / "evaluation"
    assert str(evaluation / "owls") in wrong(evaluation_dir=evaluation)
    (folder / "classnames.txt").write_text("cat\n\ndog\n")
    assert "line 2" in wrong()
    (folder / "classnames.txt").write_text("cat\ndog\n")
    (folder / "zeroshot_classification_templates.txt").write_text("a {class}\n")
    assert "{c}" in wrong()


def broken_pool(folder: Path, bad: int, shards: int = 24) -> None:
    """Write shards with eight pairs of the pool each; `bad` of them are not tars."""
    for index in range(shards):
        path = folder / f"{index:08d}.tar"
        pairs = [
            {
                "jpg": noise_image(pair),
                "txt": b"a picture",
                "json": json.dumps({"uid": uid_of(pair)}).encode(),
            }
            for pair in range(index % 8 * 8, index % 8 * 8 + 8)
        ]
        write_tar(path, pairs)
        if index < bad:
            path.write_bytes(b"<html>404</html>" * 100)


def test_a_few_unreadable_shards_are_counted(tmp_path: Path, data: Data) -> None:
    broken_pool(tmp_path / "shards", bad=2)
    flags = {**data.flags(tmp_path / "out"), "train_data": tmp_path / "shards", "num_steps": 14}
    assert train({**flags, "checkpoint_every": 14, "upstream_batch_size": 32}) == 0
    last = metrics_of(tmp_path / "out")[-1]
    assert last["left_out/shard unreadable"] > 0
    assert last["skipped_steps"] == 0


def test_many_unreadable_shards_end_the_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, data: Data
) -> None:
    broken_pool(tmp_path / "shards", bad=12)
    flags = {**data.flags(tmp_path / "out"), "train_data": tmp_path / "shards", "num_steps": 60}
    assert train({**flags, "checkpoint_every": 60, "upstream_batch_size": 32}) == 2
    # a run that takes more than a minute prints its progress too
    lines = capsys.readouterr().err.splitlines()
    (line,) = (line for line in lines if not re.match(r"training: \d+% \(", line))
    assert line.startswith("datacomp-flyt train: error: ")
    assert "cannot be read" in line
    assert "--max_bad_share" in line
    assert not (tmp_path / "out" / "scoring_model.safetensors").exists()


def test_a_pool_of_other_uids(refused: Refused, tmp_path: Path) -> None:
    pairs = [
        {
            "jpg": noise_image(index),
            "txt": b"a picture",
            "json": json.dumps({"uid": uid_of(1000 + index)}).encode(),
        }
        for index in range(8)
    ]
    write_tar(tmp_path / "shards" / "0.tar", pairs)
    message = refused(train_data=tmp_path / "shards")
    assert "uid not in the feature table: 8" in message


def test_an_output_that_is_not_a_folder_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, data: Data
) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for output in (file, file / "below"):
        assert train(data.flags(output)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"--output_dir {output}" in line
    assert file.read_text() == "mine"


@pytest.mark.parametrize(
    ("destination", "module", "package"),
    [("wandb", "wandb", "wandb"), ("tensorboard", "torch.utils.tensorboard", "tensorboard")],
)
def test_a_log_that_is_not_installed(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, destination: str, module: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    message = refused(report_to=[destination])
    assert f"--report_to {destination}" in message
    assert f"pip install {package}" in message


@pytest.mark.parametrize("package", ["torch", "open_clip", "webdataset"])
def test_a_package_that_is_not_installed(package: str) -> None:
    program = (
        f"import sys; sys.modules[{package!r}] = None\nfrom datacomp_flyt.cli import main; main()"
    )
    needed = ["--train_data", "t", "--downstream_dir", "d", "--output_dir", "o"]
    done = subprocess.run(
        [sys.executable, "-c", program, "train", "--preset", "tiny", *needed],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.endswith(f"{package} is not installed: {install_command('train')}")
