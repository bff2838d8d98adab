"""Files whose names would be commands or addresses to webdataset are opened as files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("open_clip")

import numpy as np

from datacomp_flyt.cli import main
from datacomp_flyt.clip import embed as embedding
from datacomp_flyt.datacomp import resharded_parts
from datacomp_flyt.errors import InputError
from datacomp_flyt.open_clip_hook.preconditions import check_names
from datacomp_flyt.scorers.base import score as scoring
from datacomp_flyt.self_filtering.initial_subset import read_uids
from datacomp_flyt.self_filtering.trainer_command import train_data
from datacomp_flyt.tars.samples import read_tar
from datacomp_flyt.tars.shards import Stream, list_shards
from datacomp_flyt.tars.uids import uids_of_tar
from tests.datacomp.made_parts import write_part
from tests.flyt.runs import make_data, train
from tests.flyt.tars import pair, uid_of, write_tar
from tests.report.made import MadeReport
from tests.report.made import write_tars as write_report_tars
from tests.scorers.base.image_tars import checkpoint, sample, small_model, small_weights
from tests.scorers.base.inline import InlineEngine

NAMES = [
    "pipe:touch ran;.tar",
    "pipe:touch ran #.tar",
    "pipe:touch ran||x.tar",
    "pipe:cat good.tar; touch ran; #.tar",
    "http:'; touch ran; '.tar",
    "gs:'; touch ran; '.tar",
    "ais:'; touch ran; '.tar",
    "sftp:`touch ran`.tar",
    "https:/$(touch ran).tar",
    "file:x.tar",
    "a::b.tar",
    "pipe:touch ran;.TAR",
]
NAME = NAMES[0]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder, in which no command may have run."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield folder
    assert not list(tmp_path.rglob("ran"))


def put(name: str, samples: list[Any]) -> None:
    if os.path.dirname(name):
        os.makedirs(os.path.dirname(name), exist_ok=True)
    write_tar(Path("made.tmp"), samples)
    os.rename("made.tmp", name)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", NAMES)
def test_every_way_to_name_a_shard(name: str) -> None:
    put(name, [pair(0), pair(1)])
    folder, base = os.path.split(name)
    ways = [folder or ".", f"{folder or '.'}/*", os.path.join(folder, "*"), name, f"./{name}"]
    for where in ways:
        found = list_shards(where, "--x", commands=True)
        assert [os.path.basename(shard) for shard in found] == [base]
        for shard in found:
            assert not isinstance(shard, Stream)
            assert len(list(read_tar(shard))) == 2
            assert len(uids_of_tar(shard)[0]) == 2
        assert len(read_uids(where)) == 2


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", NAMES)
def test_the_trainer_gets_no_such_name(name: str) -> None:
    """It takes patterns, and passes the names to webdataset."""
    put(name, [pair(0)])
    folder = os.path.dirname(name)
    for where in (folder or ".", name):
        try:
            pattern = train_data(where)
        except InputError:
            continue
        assert pattern.startswith(("/", "./"))
    with pytest.raises(InputError, match="for a command"):
        check_names([name])
    check_names([f"./{name}", os.path.abspath(name), "pipe:cat x.tar", "s3://bucket/x.tar"])


def test_a_folder_whose_name_is_a_command(here: Path) -> None:
    put("pipe:touch ran;/0.tar", [pair(0)])
    assert train_data("pipe:touch ran;") == f"{here}/pipe:touch ran;/0.tar"
    assert len(read_uids("pipe:touch ran;")) == 1


def test_report(here: Path, tmp_path: Path) -> None:
    made = MadeReport(tmp_path / "made")
    for number, path in enumerate(write_report_tars(tmp_path / "tars", made.pool, 2, index=False)):
        shutil.move(path, here / NAME.replace(".tar", f"{number}.tar" if number else ".tar"))
    assert "data:image/jpeg" in made.run("--shards_dir", "*.tar")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Configuration and weights; commands work in this process."""
    for module in (embedding, scoring):
        monkeypatch.setattr(module, "make_engine", lambda *_, **__: InlineEngine())
    config = small_model(tmp_path)
    return config, checkpoint(tmp_path / "weights.pt", small_weights(config))


def ends(words: list[object], code: int = 0) -> None:
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, words)))
    assert ended.value.code == code


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("where", ["*.tar", ".", NAME])
def test_embed_and_score(tmp_path: Path, model: tuple[Path, Path], where: str) -> None:
    put(NAME, [sample(0), sample(1)])
    out = tmp_path / "out"
    words = ["embed", "--shards_dir", where, "--metadata_dir", out]
    ends([*words, "--encoder", f"b32={model[0]}:{model[1]}"])
    assert (out / "pipe:touch ran;.parquet").is_file()
    words = ["score", "--scorer", "dfn", "--shards_dir", where, "--scores_dir", out]
    ends([*words, "--model", model[0], "--checkpoint", model[1]])
    assert list(out.glob("*/pipe:touch ran;.parquet"))


def test_train(here: Path, tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    for path in sorted(data.shards.glob("*.tar")):
        shutil.move(path, here / f"pipe:touch ran;{path.name}")
    task = data.downstream / "pets"
    for path in sorted(task.glob("*.tar")):
        path.rename(path.with_name(f"pipe:touch ran;{path.name}"))
    flags = data.flags(tmp_path / "out") | {"train_data": "*.tar", "num_steps": 2}
    assert train(flags) == 0


def test_check_parts(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resharded_parts, "ProcessEngine", lambda *args: InlineEngine())
    uids = [uid_of(number) for number in range(3)]
    values = sorted((int(uid[:16], 16), int(uid[16:], 16)) for uid in uids)
    subset = tmp_path / "s.npy"
    np.save(subset, np.array(values, "u8,u8"))
    write_part(tmp_path / "part", subset, dict.fromkeys(uids[:2], 1))
    put(NAME, [pair(0), pair(1)])
    for where in ("*.tar", ".", NAME):
        ends(["check_parts", tmp_path / "part", "--subset", subset, "--shards_dir", where])
    assert here.is_dir()


@pytest.mark.parametrize("command", ["embed", "score", "report", "check_parts"])
def test_only_train_data_runs_a_command(
    tmp_path: Path, model: tuple[Path, Path], command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    subset = tmp_path / "s.npy"
    np.save(subset, np.array([(1, 2)], "u8,u8"))
    write_part(tmp_path / "part", subset, {})
    words: dict[str, list[object]] = {
        "embed": ["--metadata_dir", tmp_path / "m", "--encoder", f"b32={model[0]}:{model[1]}"],
        "score": [
            *("--scorer", "dfn", "--scores_dir", tmp_path / "s", "--model", model[0]),
            *("--checkpoint", model[1]),
        ],
        "check_parts": [tmp_path / "part", "--subset", subset],
    }
    if command == "report":
        words["report"] = list(MadeReport(tmp_path / "made").words())[1:]
    ends([command, *words[command], "--shards_dir", f"pipe:touch {tmp_path}/ran"], 2)
    assert "only --train_data of `datacomp-flyt train` runs a command" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


def test_a_users_own_command_runs(here: Path) -> None:
    put("0.tar", [pair(0)])
    (command,) = list_shards("pipe:cat 0.tar", "--train_data", commands=True)
    assert len(list(read_tar(command))) == 1
    put("pipe:cat 0.tar", [pair(0), pair(1)])  # now it is a file
    (file,) = list_shards("pipe:cat 0.tar", "--train_data", commands=True)
    assert len(list(read_tar(file))) == 2
    assert here.is_dir()


def test_types_decide_and_not_names(here: Path, tmp_path: Path) -> None:
    """A plain string is always a path."""
    calls: list[Callable[[], Any]] = [
        lambda: list(read_tar("pipe:touch ran")),
        lambda: list(read_tar(str(Stream("pipe:touch ran")))),
        lambda: list(read_tar("-")),
    ]
    for call in calls:
        with pytest.raises(Exception, match="No such file"):
            call()
    assert here.is_dir()
