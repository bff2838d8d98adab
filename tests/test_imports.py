"""Importing a module imports no package that it does not need.

Selection runs in DataComp's own environment, and the open_clip hook there without `torch.func`.
Every module is imported in a process in which the packages that it must not need cannot be
imported. Import-linter checks the imports of modules by each other (pyproject.toml).
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

PACKAGES = (
    "torch", "open_clip", "webdataset", "pandas", "ray", "matplotlib", "jinja2", "safetensors"
)  # fmt: skip
MODELS = ("torch", "webdataset", "open_clip", "pandas")  # pandas: open_clip's trainer
ALLOWED = {
    "clip": MODELS,
    "demo.evaluate": MODELS,
    "demo.tour": MODELS,
    "distributed.collectives": ("torch",),
    "flyt": MODELS,
    "open_clip_hook": MODELS,
    "report": ("matplotlib", "jinja2"),
    "scorers": MODELS,
}
"""The packages that a module or the modules of a folder may import; other modules import none."""
NONE = {
    "flyt": ("__init__",),
    "report": ("__init__", "sample", "selections", "statistics", "words"),
    "scorers": (
        "__init__", "base.embedding_blocks", "base.registry", "base.score_pool", "base.scorer",
        "e_flyt.e_flyt", "e_flyt.glu_head", "linear_classifier.train", "m_flyt",
    ),
}  # fmt: skip
"""Modules of these folders that import none of the packages either."""
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
MODULES = [
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
    for package in ("baselines_plugin", "datacomp_flyt")
    for path in sorted((REPOSITORY / package).rglob("*.py"))
    if path.name != "__main__.py"
]


def allowed_packages(module: str) -> tuple[str, ...]:
    """Return the packages that a module may import."""
    folder, _, name = module.removeprefix("datacomp_flyt.").partition(".")
    if name in NONE.get(folder, ()):
        return ()
    return ALLOWED.get(f"{folder}.{name}", ALLOWED.get(folder, ()))


def run_imports(modules: list[str], allowed: tuple[str, ...]) -> list[str]:
    """Import modules in a process that has only some of the packages.

    Returns:
        a line for each import that failed, and a last line with the modules of `flyt` that were
        imported.
    """
    blocked = ",".join(name for name in PACKAGES if name not in allowed)
    names = [module.removesuffix(".__init__") for module in modules]
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, blocked, *names],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return ended.stdout.splitlines()


@pytest.mark.parametrize("allowed", sorted({*ALLOWED.values(), ()}), ids="-".join)
def test_modules_import_only_what_they_need(allowed: tuple[str, ...]) -> None:
    modules = [module for module in MODULES if allowed_packages(module) == allowed]
    assert modules
    for package in allowed:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    *failed, _ = run_imports(modules, allowed)
    assert failed == []


def test_the_lists_name_folders_and_modules() -> None:
    for folder, names in NONE.items():
        for name in names:
            assert f"datacomp_flyt.{folder}.{name}" in MODULES
            assert allowed_packages(f"datacomp_flyt.{folder}.{name}") == ()
    for module in (
        "baselines_plugin.run",
        "datacomp_flyt.cli.train_clip",
        "datacomp_flyt.selection.select",
    ):
        assert module in MODULES
        assert allowed_packages(module) == ()
    assert allowed_packages("datacomp_flyt.scorers.hype.model") == MODELS


def test_the_hook_imports_nothing_of_flyt() -> None:
    """Modules of `flyt` need a newer PyTorch than the one that DataComp pins."""
    pytest.importorskip("open_clip")
    modules = [name for name in MODULES if name.startswith("datacomp_flyt.open_clip_hook")]
    modules.append("datacomp_flyt.scorers.e_flyt.images")  # imported by --scoring_model
    assert run_imports(modules, MODELS) == [""]


def test_the_functions_of_flyt_are_not_hidden_by_modules() -> None:
    pytest.importorskip("torch")
    import datacomp_flyt.flyt.metagradient  # noqa: F401
    from datacomp_flyt import flyt

    assert callable(flyt.weighted_clip_loss)
    assert callable(flyt.weight_metagradient)
    with pytest.raises(AttributeError, match=r"has no attribute 'other'"):
        _ = flyt.other  # type: ignore[attr-defined]
