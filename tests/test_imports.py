"""Importing a module imports no package that it does not need.

Selection runs in DataComp's own environment, and the open_clip hook there without `torch.func`.
Every module is imported in one of a few processes in which the packages that it must not need
cannot be imported.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.conftest import REPOSITORY

HEAVY = ("torch", "open_clip", "webdataset", "pandas", "ray", "matplotlib", "jinja2", "safetensors")
MODELS = ("torch", "webdataset", "open_clip", "pandas")  # pandas: open_clip's trainer
# By the longest prefix of a module's name; all others need none of them.
NEEDS: dict[str, tuple[str, ...]] = {
    "datacomp_flyt.clip.": MODELS,
    "datacomp_flyt.demo.evaluate": MODELS,
    "datacomp_flyt.demo.tour": MODELS,
    "datacomp_flyt.distributed.collectives": ("torch",),
    "datacomp_flyt.flyt.": MODELS,
    "datacomp_flyt.open_clip_hook": MODELS,
    "datacomp_flyt.report.": ("matplotlib", "jinja2"),
    "datacomp_flyt.report.sample": (),
    "datacomp_flyt.report.selections": (),
    "datacomp_flyt.report.statistics": (),
    "datacomp_flyt.report.words": (),
    "datacomp_flyt.scorers.": MODELS,
    "datacomp_flyt.scorers.e_flyt.e_flyt": (),
    "datacomp_flyt.scorers.e_flyt.images": MODELS,
    "datacomp_flyt.scorers.e_flyt.glu_head": (),
    "datacomp_flyt.scorers.base.embedding_blocks": (),
    "datacomp_flyt.scorers.base.score_pool": (),
    "datacomp_flyt.scorers.m_flyt": (),
    "datacomp_flyt.scorers.base.registry": (),
    "datacomp_flyt.scorers.base.scorer": (),
    "datacomp_flyt.scorers.linear_classifier.train": (),
}
SCRIPTS = ("datacomp_flyt.cli.__main__",)
PROGRAM = """
import importlib, sys
blocked, modules = sys.argv[1].split(","), sys.argv[2:]
sys.modules.update(dict.fromkeys(filter(None, blocked)))
for name in modules:
    try:
        importlib.import_module(name)
    except ImportError as error:
        print(f"{name} imports {error.name}")
print(*(name for name in sys.modules if name.startswith("datacomp_flyt.flyt.")))
"""


def modules() -> Iterator[str]:
    for package in ("baselines_plugin", "datacomp_flyt"):
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            name = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
            if not name.startswith(SCRIPTS):
                yield name.removesuffix(".__init__")


def needs(name: str) -> tuple[str, ...]:
    prefixes = [prefix for prefix in NEEDS if name.startswith(prefix)]
    return NEEDS[max(prefixes, key=len)] if prefixes else ()


def imported(names: list[str], allowed: tuple[str, ...]) -> list[str]:
    """Import modules where only some of the packages are; the lines of what they lacked."""
    blocked = ",".join(name for name in HEAVY if name not in allowed)
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, blocked, *names],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return ended.stdout.splitlines()


@pytest.mark.parametrize("allowed", sorted(set(NEEDS.values()) | {()}), ids="-".join)
def test_modules_import_only_what_they_need(allowed: tuple[str, ...]) -> None:
    names = [name for name in modules() if needs(name) == allowed]
    assert names
    for package in allowed:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    *lacked, _ = imported(names, allowed)
    assert lacked == []


def test_selection_and_the_commands_need_none_of_them() -> None:
    for name in (
        "baselines_plugin.run", "datacomp_flyt.cli.install", "datacomp_flyt.cli.train_clip",
        "datacomp_flyt.flyt", "datacomp_flyt.mixing.m_flyt", "datacomp_flyt.pool.subset",
        "datacomp_flyt.samplers.race", "datacomp_flyt.selection.select",
    ):  # fmt: skip
        assert needs(name) == ()


def test_the_hook_imports_nothing_of_flyt() -> None:
    """Its modules want a newer PyTorch than the one that DataComp pins."""
    pytest.importorskip("open_clip")
    names = [name for name in modules() if name.startswith("datacomp_flyt.open_clip_hook")]
    names.append("datacomp_flyt.scorers.e_flyt.images")  # which --scoring_model imports
    assert imported(names, MODELS) == [""]


def test_the_functions_of_flyt_are_not_hidden_by_modules() -> None:
    pytest.importorskip("torch")
    import datacomp_flyt.flyt.metagradient  # noqa: F401
    from datacomp_flyt import flyt

    assert callable(flyt.weighted_clip_loss)
    assert callable(flyt.weight_metagradient)
    with pytest.raises(AttributeError, match=r"has no attribute 'other'"):
        _ = flyt.other  # type: ignore[attr-defined]
