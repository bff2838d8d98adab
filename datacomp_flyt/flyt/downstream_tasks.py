"""Downstream tasks: labelled tars with the class names and templates of their prompts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from datacomp_flyt.errors import InputError
from datacomp_flyt.files.open_file import check_regular
from datacomp_flyt.tars.shards import tars_in

CLASS_NAMES_FILE = "classnames.txt"
_FLAG = "--downstream_dir"
TEMPLATES_FILE = "zeroshot_classification_templates.txt"

EVALUATION_FOLDER_OF = {
    "aircraft": "wds_fgvc_aircraft_test",
    "cars": "wds_cars_test",
    "cifar10": "wds_cifar10_test",
    "cifar100": "wds_vtab-cifar100_test",
    "country": "wds_country211_test",
    "dollar_street": "wds_dollar_street_test",
    "dtd": "wds_vtab-dtd_test",
    "eurosat": "wds_vtab-eurosat_test",
    "flowers102": "wds_vtab-flowers_test",
    "fmow": "wds_wilds-fmow_test",
    "food101": "wds_food101_test",
    "gtsrb": "wds_gtsrb_test",
    "imagenet": "wds_imagenet1k_test",
    "iwildcam": "wds_wilds-iwildcam_test",
    "mnist": "wds_mnist_test",
    "pet": "wds_vtab-pets_test",
    "rendered_sst2": "wds_renderedsst2_test",
    "resisc45": "wds_vtab-resisc45_test",
    "stl10": "wds_stl10_test",
    "sun397": "wds_sun397_test",
    "svhn": "wds_vtab-svhn_test",
    "voc": "wds_voc2007_test",
}
"""Folder of DataComp's evaluation set, by FLYT's name of each of its 22 tasks (Appendix C.9)."""


@dataclass(frozen=True)
class DownstreamTask:
    """A labelled dataset.

    Attributes:
        name: FLYT's name of the task, or the name of its folder.
        shards: paths of its tars.
        class_names: class names in the order of the labels.
        templates: prompts with `{c}` in place of the class name.
    """

    name: str
    shards: tuple[str, ...]
    class_names: tuple[str, ...]
    templates: tuple[str, ...]


def open_tasks(
    downstream_dir: str, names: Sequence[str] | None = None, eval_dir: str | None = None
) -> list[DownstreamTask]:
    """Open the tasks of a folder.

    Args:
        downstream_dir: the folder of one task, with tars in itself or in `train/`; or a folder of
            such folders.
        names: names of the tasks, in this order; None for all, sorted. If `downstream_dir` is the
            folder of one task, a name replaces the folder's.
        eval_dir: DataComp's evaluation sets (`download_evalsets.py`), for class names and templates
            that a task's folder lacks.

    Raises:
        InputError: the folder or a task does not exist; a task lacks tars, class names or
            templates; one of its text files has an empty line, a repeated template or a template
            without `{c}`.
    """
    if not os.path.isdir(downstream_dir):
        raise InputError(f"--downstream_dir {downstream_dir} is not a folder: give one with tars")
    if _tars(downstream_dir):
        own_name = os.path.basename(os.path.abspath(downstream_dir))
        chosen = list(names or [own_name])
        if len(chosen) > 1:
            raise InputError(
                f"--downstream_dir {downstream_dir} holds tars and so is one task, not "
                f"{', '.join(chosen)}: give the folder above, or one name"
            )
        return [_open_task(chosen[0], downstream_dir, eval_dir)]
    available = sorted(
        entry.name
        for entry in os.scandir(downstream_dir)
        if entry.is_dir() and not entry.name.startswith((".", "_"))
    )
    chosen = available if names is None else list(names)
    for position, name in enumerate(chosen):
        if name not in available:
            raise InputError(
                f"--downstream_dir {downstream_dir} has no task {name!r}: it has "
                f"{', '.join(available) or 'no folder'}"
            )
        if name in chosen[:position]:
            raise InputError(f"task {name!r} is named twice: name each once")
    if not chosen:
        raise InputError(
            f"--downstream_dir {downstream_dir} holds neither tars nor folders with tars: give "
            "the folder of a task, or of several"
        )
    return [_open_task(name, os.path.join(downstream_dir, name), eval_dir) for name in chosen]


def sample_prompts(tasks: Sequence[DownstreamTask], rng: np.random.Generator) -> list[str]:
    """Return a prompt for each class of all tasks, with a random template (Appendix C.8)."""
    return [
        task.templates[template].replace("{c}", class_name)
        for task in tasks
        for class_name, template in zip(
            task.class_names,
            rng.integers(len(task.templates), size=len(task.class_names)).tolist(),
            strict=True,
        )
    ]


def _open_task(name: str, folder: str, eval_dir: str | None) -> DownstreamTask:
    shards = _tars(folder)
    if not shards:
        raise InputError(
            f"task {name!r} has no .tar file in {folder} or its train/: download it, or leave it "
            "out with --downstream_tasks"
        )
    class_names = _read(name, folder, eval_dir, CLASS_NAMES_FILE, "class names")
    templates = _read(name, folder, eval_dir, TEMPLATES_FILE, "templates")
    return DownstreamTask(name, tuple(shards), class_names, templates)


def _tars(folder: str) -> list[str]:
    inner = os.path.join(folder, "train")
    return tars_in(folder, _FLAG) or (tars_in(inner, _FLAG) if os.path.isdir(inner) else [])


def _read(name: str, folder: str, eval_dir: str | None, file: str, noun: str) -> tuple[str, ...]:
    """Read the lines of a task's file in its folder or in that of its evaluation set."""
    missing = []
    for candidate in _folders(name, folder, eval_dir):
        path = os.path.join(candidate, file)
        if os.path.isfile(path):
            return _lines(path, templates=file == TEMPLATES_FILE)
        missing.append(path)
    if name == "imagenet" and (known := _imagenet(file)):
        return known
    advice = "write it" if eval_dir else "write it, or give DataComp's --evaluation_dir"
    raise InputError(f"task {name!r} has no {noun} in {' or '.join(missing)}: {advice}")


def _folders(name: str, folder: str, eval_dir: str | None) -> Iterator[str]:
    yield folder
    if eval_dir is not None:
        yield os.path.join(eval_dir, EVALUATION_FOLDER_OF.get(name, name))


def _lines(path: str, templates: bool) -> tuple[str, ...]:
    try:
        check_regular(path)
        with open(path, encoding="utf-8") as file:
            lines = [line.strip() for line in file.read().rstrip().split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}): download or write it again") from None
    first_row: dict[str, int] = {}
    for row, line in enumerate(lines):
        if not line:
            raise InputError(f"{path} line {row + 1} is empty: take it out")
        if templates and "{c}" not in line:
            raise InputError(
                f"{path} line {row + 1} is {line!r}, with no {{c}} for the class name: put it in"
            )
        # class names may be repeated, as in ImageNet
        if templates and line in first_row:
            raise InputError(
                f"{path} line {row + 1} repeats line {first_row[line] + 1}: take one out"
            )
        first_row[line] = row
    return tuple(lines)


def _imagenet(file: str) -> tuple[str, ...]:
    """Return open_clip's class names or templates of ImageNet; none without open_clip."""
    try:
        from open_clip import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES
    except ImportError:
        return ()
    if file == CLASS_NAMES_FILE:
        return tuple(IMAGENET_CLASSNAMES)
    return tuple(template("{c}") for template in OPENAI_IMAGENET_TEMPLATES)
