"""Names that README.md and docs/ gave before modules moved still work."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("datacomp_flyt.cli", "main"),
        ("datacomp_flyt.flyt", "weight_metagradient"),
        ("datacomp_flyt.flyt", "weighted_clip_loss"),
        ("datacomp_flyt.flyt.train", "main"),
        ("datacomp_flyt.open_clip_hook", "install_hook"),
        ("datacomp_flyt.samplers", "soft_cap_counts"),
        ("datacomp_flyt.scorers", "e_flyt_scores"),
        ("datacomp_flyt.scorers", "load_glu_head"),
    ],
)
def test_documented_names_are_where_they_were(module: str, name: str) -> None:
    pytest.importorskip("open_clip")
    assert callable(getattr(importlib.import_module(module), name))


def test_the_old_module_is_the_new_one() -> None:
    pytest.importorskip("open_clip")
    sys.modules.pop("datacomp_flyt.scorers.hype_reference", None)
    with pytest.warns(DeprecationWarning, match=r"is now datacomp_flyt\.scorers\.hype\.reference"):
        old = importlib.import_module("datacomp_flyt.scorers.hype_reference")
    assert old is importlib.import_module("datacomp_flyt.scorers.hype.reference")


def test_the_old_command_warns_and_runs() -> None:
    pytest.importorskip("open_clip")
    ended = subprocess.run(
        [sys.executable, "-m", "datacomp_flyt.scorers.hype_reference", "--help"],
        cwd=REPOSITORY, capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "--num_examples" in ended.stdout
    assert "is now datacomp_flyt.scorers.hype.reference" in ended.stderr
