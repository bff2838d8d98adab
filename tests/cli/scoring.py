"""Runs `datacomp-flyt score` in this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from datacomp_flyt.cli import main
from datacomp_flyt.demo import POOL

METADATA = POOL / "metadata"


NPZ = ("--metadata_dir", str(METADATA))


def score(scores_dir: Path, scorer: str, *flags: str) -> int:
    """The command inside this process; its exit code."""
    with pytest.raises(SystemExit) as ended:
        main(["score", "--scorer", scorer, "--scores_dir", str(scores_dir), *flags])
    return int(ended.value.code or 0)


def files_in(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(paths)}
