"""Tests of our patch in a host that has DataComp's files and flags.

Each host is a subclass of `Host`, and a test module runs `HostContract` with one host.
"""

import json
import os
import re
import subprocess
import tarfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from .pool import SHARD_ROWS, Pool, scores_with_nan

REPOSITORY = Path(__file__).resolve().parents[2]
DEMO_POOL = REPOSITORY / "datacomp_flyt" / "demo" / "pool"
POOL_ROWS = sum(SHARD_ROWS)

NO_FILTER = ("--name", "no_filter")
CLIP_SCORE = ("--name", "clip_score", "--arch", "l14", "--fraction", "0.3")
M_FLYT = ("--name", "m_flyt", "--scoring_model", "paper")
SMALL_SCALE = (*M_FLYT, "--sampling", "scs", "--scale", "small")
TOP_QUARTER = (*M_FLYT, "--sampling", "top_fraction", "--fraction", "0.25")
SCS_ON_CLIP = ("--name", "scs", "--column", "clip_l14_similarity_score")
SCS_FLAGS = ("--repetition_penalty", "0.15", "--num_samples")


@dataclass(frozen=True)
class Outcome:
    """The exit code and the output of a command."""

    code: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Host(ABC):
    """A copy of a DataComp-like checkout that a test may change."""

    directory: Path
    python: str
    extra_path: str = ""

    def run(self, *arguments: str | Path) -> Outcome:
        """Run the host's Python in the host's parent folder; it can import this repository."""
        path = os.pathsep.join(filter(None, [str(REPOSITORY), self.extra_path]))
        ended = subprocess.run(
            [self.python, *map(str, arguments)],
            check=False,
            cwd=self.directory.parent,
            env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
        )
        return Outcome(ended.returncode, ended.stdout, ended.stderr)

    def select(self, flags: Sequence[str | Path], metadata: Path, save_path: Path) -> Outcome:
        """Run the host's baselines.py."""
        where = ("--metadata_dir", metadata, "--save_path", save_path, "--num_workers", "2")
        return self.run(self.directory / "baselines.py", *flags, *where)

    def files(self) -> dict[str, tuple[int, bytes]]:
        """Return mode and content of every file, by path."""
        return {
            str(path.relative_to(self.directory)): (path.stat().st_mode, path.read_bytes())
            for path in self.directory.rglob("*")
            if path.is_file()
        }

    @abstractmethod
    def install(self) -> Outcome:
        """Add the patch."""

    @abstractmethod
    def check(self) -> Outcome:
        """Return exit code 0 if the patch is there, and 1 if not."""

    @abstractmethod
    def revert(self) -> Outcome:
        """Remove the patch."""


def succeed(outcome: Outcome) -> Outcome:
    assert outcome.code == 0, outcome.stderr
    return outcome


def assert_refused(outcome: Outcome, *named: str) -> None:
    """Assert exit code 2 and one line on stderr that has the given words."""
    assert outcome.code == 2, outcome.stderr
    assert len(outcome.stderr.strip().splitlines()) == 1, outcome.stderr
    for name in named:
        assert name in outcome.stderr


def count_draws(subset: np.ndarray) -> dict[tuple[int, int], int]:
    """Return the count of each uid in a subset, and assert that the subset is sorted."""
    assert subset.dtype == np.dtype("u8,u8")
    assert subset.ndim == 1
    high, low = subset["f0"], subset["f1"]
    rises = (high[1:] > high[:-1]) | ((high[1:] == high[:-1]) & (low[1:] > low[:-1]))
    same = (high[1:] == high[:-1]) & (low[1:] == low[:-1])
    assert np.all(rises | same), "not sorted"
    starts = np.concatenate([[0], np.flatnonzero(rises) + 1])
    draws = np.diff(np.append(starts, len(subset)))
    return dict(zip(subset[starts].tolist(), draws.tolist(), strict=True))


class HostContract:
    """Tests of a host; a subclass has a fixture `host` that returns an unpatched copy."""

    def test_check_tells_a_clean_checkout_from_a_patched_one(self, host: Host) -> None:
        assert host.check().code == 1
        succeed(host.install())
        assert host.check().code == 0
        succeed(host.revert())
        assert host.check().code == 1

    def test_install_twice_is_install_once_and_revert_undoes_it(self, host: Host) -> None:
        clean = host.files()
        succeed(host.install())
        patched = host.files()
        assert [name for name in patched if patched[name] != clean.get(name)] == ["baselines.py"]
        succeed(host.install())
        assert host.files() == patched
        succeed(host.revert())
        assert host.files() == clean

    @pytest.mark.parametrize("installed_before", [False, True])
    def test_an_altered_file_is_refused_and_left_alone(
        self, host: Host, installed_before: bool
    ) -> None:
        if installed_before:
            succeed(host.install())
        with (host.directory / "baselines.py").open("a") as file:
            file.write("# a line of somebody else\n")
        altered = host.files()
        assert_refused(host.install(), "baselines.py")
        assert_refused(host.revert(), "baselines.py")
        assert host.files() == altered

    @pytest.mark.parametrize("flags", [NO_FILTER, CLIP_SCORE], ids=lambda flags: flags[1])
    def test_stock_names_give_the_same_bytes_as_before(
        self, host: Host, pool: Pool, tmp_path: Path, flags: tuple[str, ...]
    ) -> None:
        before, after = tmp_path / "before.npy", tmp_path / "after.npy"
        succeed(host.select(flags, pool.metadata, before))
        succeed(host.install())
        succeed(host.select(flags, pool.metadata, after))
        assert after.read_bytes() == before.read_bytes()
        # every row, or the top 30% and one more row, by DataComp's rule
        assert len(np.load(after)) == (POOL_ROWS if flags == NO_FILTER else 6_001)

    def test_the_host_refuses_the_same_flags_as_before(
        self, host: Host, pool: Pool, tmp_path: Path
    ) -> None:
        succeed(host.install())
        out = tmp_path / "out.npy"
        outcome = host.select((*NO_FILTER, "--fraction", "0.3"), pool.metadata, out)
        assert outcome.code != 0
        assert "--fraction" in outcome.stderr
        assert not out.exists()

    @pytest.mark.parametrize(
        ("flags", "draws"),
        [
            pytest.param(SMALL_SCALE, 12_800_000, id="m_flyt-scs-small"),
            pytest.param(TOP_QUARTER, POOL_ROWS // 4, id="m_flyt-top_fraction"),
            pytest.param((*SCS_ON_CLIP, *SCS_FLAGS, "30000"), 30_000, id="scs-on-clip_score"),
        ],
    )
    def test_our_methods_select_the_same_in_the_host(
        self, host: Host, pool: Pool, tmp_path: Path, flags: tuple[str, ...], draws: int
    ) -> None:
        succeed(host.install())
        if "m_flyt" in flags:
            flags = (*flags, "--scores_dir", str(pool.scores))
        inside, alone = tmp_path / "inside.npy", tmp_path / "alone.npy"
        succeed(host.select(flags, pool.metadata, inside))
        where = ("--metadata_dir", pool.metadata, "--save_path", alone, "--num_workers", "2")
        succeed(host.run("-m", "baselines_plugin", *flags, *where))
        assert inside.read_bytes() == alone.read_bytes()

        counts = count_draws(np.load(inside))
        assert sum(counts.values()) == draws
        assert counts.keys() <= pool.uids
        if "top_fraction" in flags:
            assert set(counts.values()) == {1}
        inside.unlink()  # such a file has 205 MB at small scale
        alone.unlink()

    def test_selection_in_files_equals_selection_in_memory(
        self, host: Host, pool: Pool, tmp_path: Path
    ) -> None:
        """Workers sort the pool; they import the host's baselines.py again."""
        succeed(host.install())
        flags = (*TOP_QUARTER, "--scores_dir", str(pool.scores))
        memory, files = tmp_path / "memory.npy", tmp_path / "files.npy"
        succeed(host.select(flags, pool.metadata, memory))
        succeed(host.select((*flags, "--work_dir", tmp_path / "work"), pool.metadata, files))
        assert files.read_bytes() == memory.read_bytes()

    def test_a_nan_score_is_refused(self, host: Host, pool: Pool, tmp_path: Path) -> None:
        spoilt = scores_with_nan(pool, tmp_path / "scores")
        self.assert_selection_refused(host, pool.metadata, spoilt.parent, tmp_path, spoilt.name)

    def test_a_missing_metadata_dir_is_refused(
        self, host: Host, pool: Pool, tmp_path: Path
    ) -> None:
        missing = tmp_path / "no_metadata"
        self.assert_selection_refused(host, missing, pool.scores, tmp_path, str(missing))

    def test_a_missing_scores_dir_is_refused(self, host: Host, pool: Pool, tmp_path: Path) -> None:
        missing = tmp_path / "no_scores"
        self.assert_selection_refused(host, pool.metadata, missing, tmp_path, str(missing))

    def assert_selection_refused(
        self, host: Host, metadata: Path, scores: Path, tmp_path: Path, named: str
    ) -> None:
        succeed(host.install())
        saved = tmp_path / "saved"
        saved.mkdir()
        flags = (*SMALL_SCALE, "--scores_dir", scores)
        assert_refused(host.select(flags, metadata, saved / "out.npy"), named)
        assert list(saved.iterdir()) == []

    def test_the_resharder_finds_every_draw(self, host: Host, tmp_path: Path) -> None:
        if not DEMO_POOL.is_dir():
            pytest.skip(f"no demo pool at {DEMO_POOL}")
        succeed(host.install())
        subset_file = tmp_path / "subset.npy"
        flags = (*SCS_ON_CLIP, *SCS_FLAGS, "1000")
        succeed(host.select(flags, DEMO_POOL / "metadata", subset_file))
        subset = np.load(subset_file)
        wanted = count_draws(subset)
        assert sum(wanted.values()) == 1_000
        assert max(wanted.values()) > 1, "no repeats, so nothing is tested"

        said, copied = reshard(host, subset_file, tmp_path / "resharded")
        assert re.search(r"output 1000 images", said)
        assert "not found in the input" not in said
        assert copied == wanted

        # the resharder does print the warning if a uid is not in the pool
        subset[0] = (0, 0)
        np.save(subset_file, subset)
        said, copied = reshard(host, subset_file, tmp_path / "resharded_again")
        assert "not found in the input" in said
        assert sum(copied.values()) == 999


def reshard(
    host: Host, subset_file: Path, output: Path, shards: Path = DEMO_POOL / "shards"
) -> tuple[str, Counter[tuple[int, int]]]:
    """Run the host's resharder; return its log and the count of each uid in its shards."""
    output.mkdir()
    where = ("-i", shards, "-o", output, "-s", subset_file)
    outcome = succeed(host.run(host.directory / "resharder.py", *where))
    copied = Counter[tuple[int, int]]()
    for shard in output.glob("*.tar"):
        with tarfile.open(shard) as tar:
            for member in tar:
                content = tar.extractfile(member)
                if member.name.endswith(".json") and content is not None:
                    uid = json.load(content)["uid"]
                    copied[int(uid[:16], 16), int(uid[16:], 16)] += 1
    return outcome.stdout + outcome.stderr, copied
