"""Downstream tasks: folders, class names, templates, prompts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("braceexpand")

from datacomp_flyt.flyt.downstream_tasks import (
    EVALUATION_FOLDER_OF,
    DownstreamTask,
    open_tasks,
    sample_prompts,
)
from tests.conftest import refusal
from tests.flyt.tars import write_tar, write_task


def test_one_folder_is_one_task(tmp_path: Path) -> None:
    folder = write_task(tmp_path / "pets", [0, 1, 2, 0, 1])
    (task,) = open_tasks(str(folder) + "/")
    assert task == DownstreamTask(
        "pets",
        (str(folder / "0000.tar"), str(folder / "0004.tar")),
        ("cat", "dog", "owl"),
        ("a photo of a {c}.", "a {c}"),
    )
    assert open_tasks(str(folder), ["voc"])[0].name == "voc"
    assert "is one task, not a, b" in refusal(open_tasks, str(folder), ["a", "b"])


def test_a_folder_of_folders_is_several_tasks(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        write_task(tmp_path / name, [0])
    (tmp_path / ".cache").mkdir()
    assert [task.name for task in open_tasks(str(tmp_path))] == ["a", "b", "c"]
    assert [task.name for task in open_tasks(str(tmp_path), ["c", "a"])] == ["c", "a"]
    message = refusal(open_tasks, str(tmp_path), ["a", "d"])
    assert message.endswith("has no task 'd': it has a, b, c")
    assert "named twice" in refusal(open_tasks, str(tmp_path), ["a", "a"])


def test_tars_in_train(tmp_path: Path) -> None:
    write_task(tmp_path / "a", [])
    write_tar(tmp_path / "a" / "train" / "0.tar", [])
    for folder in (tmp_path, tmp_path / "a"):
        (task,) = open_tasks(str(folder))
        assert task.name == "a"
        assert task.shards == (str(tmp_path / "a" / "train" / "0.tar"),)


def test_names_and_templates_of_evaluation_sets(tmp_path: Path) -> None:
    data, evaluation = tmp_path / "data", tmp_path / "evaluation"
    write_task(data / "svhn", [0], class_names=["zero", "one"], templates=None)
    write_task(data / "my_own", [0], None, None)
    write_task(evaluation / "wds_vtab-svhn_test", [], ["0", "1"], ["the number {c}"])
    write_task(evaluation / "my_own", [], ["x"], ["{c}"])
    own, svhn = open_tasks(str(data), eval_dir=str(evaluation))
    assert svhn.class_names == ("zero", "one")
    assert svhn.templates == ("the number {c}",)
    assert (own.class_names, own.templates) == (("x",), ("{c}",))


def test_flyt_names_22_tasks() -> None:
    assert len(EVALUATION_FOLDER_OF) == len(set(EVALUATION_FOLDER_OF.values())) == 22
    assert all(folder.startswith("wds_") for folder in EVALUATION_FOLDER_OF.values())


def test_imagenet_is_known_to_open_clip(tmp_path: Path) -> None:
    open_clip = pytest.importorskip("open_clip")
    folder = write_task(tmp_path / "imagenet", [0], None, None)
    (task,) = open_tasks(str(folder))
    assert task.class_names == tuple(open_clip.IMAGENET_CLASSNAMES)
    assert len(set(task.class_names)) < len(task.class_names) == 1000
    assert len(task.templates) == 80
    assert task.templates[0] == open_clip.OPENAI_IMAGENET_TEMPLATES[0]("{c}")
    assert all("{c}" in template for template in task.templates)


# ------------------------------------------------------------------------------- refusals


def test_folders_without_a_task_are_refused(tmp_path: Path) -> None:
    assert "is not a folder" in refusal(open_tasks, str(tmp_path / "none"))
    assert "neither tars nor folders" in refusal(open_tasks, str(tmp_path))
    (tmp_path / "empty").mkdir()
    assert "task 'empty' has no .tar file in" in refusal(open_tasks, str(tmp_path))


def test_the_message_names_the_paths_of_missing_files(tmp_path: Path) -> None:
    folder = write_task(tmp_path / "stl10", [0], None)
    message = refusal(open_tasks, str(folder))
    assert f"task 'stl10' has no class names in {folder}/classnames.txt: " in message
    assert "--evaluation_dir" in message
    message = refusal(open_tasks, str(folder), None, str(tmp_path / "e"))
    assert f"or {tmp_path}/e/wds_stl10_test/classnames.txt: " in message


@pytest.mark.parametrize(
    ("class_names", "templates", "line"),
    [
        (["a", "", "b"], ["{c}"], "classnames.txt line 2 is empty"),
        ([" "], ["{c}"], "classnames.txt line 1 is empty"),
        (["a"], ["a {c}", "no place"], "line 2 is 'no place', with no {c}"),
        (["a"], ["a {}"], "line 1 is 'a {}', with no {c}"),
        (["a"], ["a {c}", "", "{c}"], "templates.txt line 2 is empty"),
        (["a"], ["a {c}", "{c}", "a {c} "], "templates.txt line 3 repeats line 1"),
    ],
)
def test_invalid_lines_are_refused(
    tmp_path: Path, class_names: list[str], templates: list[str], line: str
) -> None:
    folder = write_task(tmp_path, [0], class_names, templates)
    assert line in refusal(open_tasks, str(folder))


def test_files_that_are_not_text_are_refused(tmp_path: Path) -> None:
    folder = write_task(tmp_path, [0])
    (folder / "classnames.txt").write_bytes(b"\xff\xfe")
    assert "cannot be read" in refusal(open_tasks, str(folder))


# ------------------------------------------------------------------------------- prompts

TASKS = [
    DownstreamTask("one", (), ("cat", "{dog}"), ("a {c}", "the {c}", "{c} and {c}")),
    DownstreamTask("two", (), ("owl",), ("{c}!",)),
]


def test_prompts_are_in_the_order_of_the_labels() -> None:
    prompts = sample_prompts(TASKS, np.random.default_rng(0))
    assert len(prompts) == 3
    assert "cat" in prompts[0]
    assert "{dog}" in prompts[1]
    assert prompts[2] == "owl!"


def test_templates_are_drawn_uniformly_for_each_class() -> None:
    rng = np.random.default_rng(1)
    drawn = Counter(tuple(sample_prompts(TASKS, rng)[:2]) for _ in range(1800))
    assert len(drawn) == 9
    chi_square = sum((count - 200) ** 2 / 200 for count in drawn.values())
    assert chi_square < 26.1  # the 99.9% quantile for 8 degrees of freedom
