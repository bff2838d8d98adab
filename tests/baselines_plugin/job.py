"""A selection from a small pool, run in this process or as a command."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np

from baselines_plugin import run_if_ours
from baselines_plugin.__main__ import build_parser
from tests.conftest import REPOSITORY, MadePool, write_files
from tests.oracles.selection import UidPair, parse_uid, subset_array


class Outcome(NamedTuple):
    """The exit code and the output of a command."""

    code: int
    stdout: str
    stderr: str


def in_process(*flags: str) -> Outcome:
    """Run `python -m baselines_plugin` in this process."""
    stdout, stderr = io.StringIO(), io.StringIO()
    code = 0
    with (
        mock.patch.object(sys, "argv", ["baselines.py", *flags]),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        try:
            run_if_ours(build_parser().parse_args(flags))
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(bool(ended.code))
    return Outcome(code, stdout.getvalue(), stderr.getvalue())


def as_command(*flags: str) -> Outcome:
    """Run `python -m baselines_plugin` in a process of its own."""
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(
        [sys.executable, "-m", "baselines_plugin", *flags],
        check=False,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    return Outcome(ended.returncode, ended.stdout, ended.stderr)


def assert_refused(outcome: Outcome, *named: object) -> None:
    """Assert exit code 2 and one sentence on stderr that contains the given words."""
    code, _, stderr = outcome
    assert code == 2, stderr
    program = r"(python -m baselines_plugin|baselines\.py)"
    assert re.fullmatch(program + r": error: [^\r\n]+\n", stderr), stderr
    assert "Traceback" not in stderr
    for name in named:
        assert str(name) in stderr


@dataclass(frozen=True)
class Job:
    """A pool and its score table on disk, and the path of the subset."""

    pool: MadePool
    folder: Path

    @property
    def metadata(self) -> Path:
        return self.folder / "metadata"

    @property
    def scores(self) -> Path:
        return self.folder / "scores"

    @property
    def save_path(self) -> Path:
        return self.folder / "saved" / "subset.npy"

    @property
    def pairs(self) -> list[UidPair]:
        return [parse_uid(uid) for uid in self.pool.uids]

    def write(self, parts: int = 1, seed: int | None = None) -> Job:
        """Write the files; with a seed, metadata and scores differ in row order and file sizes."""
        write_files(self.metadata, self.pool.metadata, parts, seed)
        write_files(self.scores, self.pool.scores, parts, None if seed is None else seed + 1)
        self.save_path.parent.mkdir(exist_ok=True)
        return self

    def flags(self, *flags: object, table: bool = True) -> list[str]:
        paths: list[object] = ["--metadata_dir", self.metadata, "--save_path", self.save_path]
        if table:
            paths += ["--scores_dir", self.scores]
        if "--num_workers" not in flags:
            paths += ["--num_workers", 1]
        return [str(flag) for flag in (*flags, *paths)]

    def select(self, *flags: object, table: bool = True) -> str:
        """Run the selection, assert that it succeeds, and return its output."""
        code, stdout, stderr = in_process(*self.flags(*flags, table=table))
        assert (code, stderr) == (0, "")
        return stdout

    def subset_is(self, counts: object) -> bool:
        """Return whether the saved subset has these counts, which are in the order of the pool."""
        expected = io.BytesIO()
        np.save(expected, subset_array(self.pairs, np.asarray(counts).tolist()))
        return self.save_path.read_bytes() == expected.getvalue()
