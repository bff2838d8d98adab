"""The benchmark of selection from files: memory cap, pool, refusals and projection."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks import scale, scale_pool
from benchmarks.memory_cap import MemoryCap, NoCap, memory_cap
from datacomp_flyt.pool.pool import read_pool

MB = 1_000_000


def memory_cap_files(version: int) -> tuple[str, str, str]:
    return {
        1: ("memory.limit_in_bytes", "memory.max_usage_in_bytes", "memory.memsw.limit_in_bytes"),
        2: ("memory.max", "memory.peak", "memory.swap.max"),
    }[version]


def fake_root(folder: Path, version: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder in which every new folder gets the files of a cgroup."""
    names = memory_cap_files(version)
    make = Path.mkdir

    def mkdir(path: Path, *args: object, **more: object) -> None:
        make(path, *args, **more)
        if path.parent == folder:
            for name in (*names, "cgroup.procs"):
                (path / name).write_text("123")

    monkeypatch.setattr(Path, "mkdir", mkdir)
    return folder


@pytest.mark.parametrize(("version", "swap"), [(1, str(64 * MB)), (2, "0")])
def test_a_cap_is_written_to_a_cgroup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int, swap: str
) -> None:
    root = fake_root(tmp_path, version, monkeypatch)
    with memory_cap(64 * MB, [tmp_path / "none", root]) as cap:
        assert cap.kind == f"cgroup v{version}"
        assert cap.holds
        assert cap.peak_bytes() == 123
        limits = memory_cap_files(version)
        written = {path.name: path.read_text() for path in cap.folder.iterdir()}
        assert [written[name] for name in limits] == [str(64 * MB), "123", swap]
        done = subprocess.run(cap.command(["echo", "in it"]), capture_output=True, text=True)
        assert done.stdout == "in it\n"
        assert int((cap.folder / "cgroup.procs").read_text()) > 1
        (cap.folder / limits[0]).write_text("max")
        assert not cap.holds
    assert list(root.iterdir()) == []


def test_without_a_cgroup_there_is_no_cap(tmp_path: Path) -> None:
    with pytest.raises(NoCap, match="no memory controller"), memory_cap(MB, [tmp_path]):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("version", [1, 2])
def test_what_the_block_raises_comes_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    root = fake_root(tmp_path, version, monkeypatch)
    with pytest.raises(OSError, match="full") as raised, memory_cap(MB, [root, root]):
        raise OSError(errno.ENOSPC, "the disk is full")
    assert raised.value.errno == errno.ENOSPC
    assert list(root.iterdir()) == []


def swaps_above(cap: MemoryCap) -> bool:
    """Return whether a process above a cap swaps instead of being killed."""
    swaps = Path("/proc/swaps")
    if not swaps.exists() or len(swaps.read_text().splitlines()) < 2:
        return False
    return not (cap.folder / memory_cap_files(int(cap.kind[-1]))[2]).exists()


def run_under(
    limit: int, code: str, may_swap: bool = True
) -> tuple[int, MemoryCap, int | None, int | None]:
    """Run code under a real cap: exit code, cap, kills and peak; skip without cgroups."""
    try:
        with memory_cap(limit) as cap:
            if cap.folder is None:
                pytest.skip("the cap here is systemd's: it is known only while a command runs")
            if not may_swap and swaps_above(cap):
                pytest.skip("swap is on and no cgroup here counts it: what is above a cap swaps")
            done = subprocess.run(cap.command([sys.executable, "-c", code]), capture_output=True)
            return done.returncode, cap, cap.kills(), cap.peak_bytes()
    except NoCap as error:
        pytest.skip(str(error))


def test_the_kernel_kills_above_the_cap() -> None:
    code, cap, kills, _ = run_under(64 * MB, f"len(b'x' * {200 * MB})", may_swap=False)
    assert code == -9
    assert kills != 0
    assert not cap.folder.exists()


def test_files_may_be_larger_than_the_cap(tmp_path: Path) -> None:
    """Pages of the page cache are dropped; the process is not killed."""
    path = tmp_path / "file"
    code, _, kills, peak = run_under(
        64 * MB, f"f = open({str(path)!r}, 'wb'); [f.write(bytes({MB})) for _ in range(150)]"
    )
    assert (code, kills or 0, path.stat().st_size) == (0, 0, 150 * MB)
    assert peak is None or peak <= 64 * MB


def test_a_pool_is_named_by_its_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale_pool, "SHARD_ROWS", 300)
    tables = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        size = scale_pool.make_pool(tmp_path / name, 1000, seed, 1, "zstd")
        files = sorted((tmp_path / name).iterdir())
        assert size == sum(path.stat().st_size for path in files)
        assert [pq.read_metadata(path).num_rows for path in files] == [300, 300, 300, 100]
        tables.append(pq.read_table(tmp_path / name))
    assert tables[0].equals(tables[1])
    assert not tables[0].equals(tables[2])
    assert len(read_pool(str(tmp_path / "a"), 1)) == 1000  # no uid twice
    scores = [tables[0][name].to_numpy() for name in scale_pool.COLUMNS]
    assert all(column.dtype == np.float32 for column in scores)
    assert 0.5 < np.corrcoef(scores)[0, 1] < 0.95


def test_more_than_the_disk_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"rows need .* GB of disk .* lower --rows"):
        scale.main(["--rows", "1000", str(10**13), "--dir", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []


def test_the_disk_that_draws_need() -> None:
    few, many = (scale.bytes_needed(1000, draws, "zstd", 1) for draws in (1000, 100_000))
    assert few == (25 + 24 + 24) * 1000
    assert many == (25 + 24 + 4) * 1000 + 16 * 100_000
    rounds = scale.bytes_needed(1000, 100_000, "zstd", 100)
    assert rounds == (25 + 24 + 4) * 1000 + 32 * (1000 + 100_000)


@pytest.mark.parametrize("batch_size", ["0", "1001"])
def test_rounds_that_no_pool_has_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], batch_size: str
) -> None:
    with pytest.raises(SystemExit):
        scale.main(
            ["--rows", "2000", "1000", "--sampling_batch_size", batch_size, "--dir", str(tmp_path)]
        )
    assert "--sampling_batch_size is from 1 to --rows" in capsys.readouterr().err


def test_a_projection_is_a_line() -> None:
    runs = [{"rows": n, "scs": {"seconds": 5 + n / 1e6}} for n in (10**6, 2 * 10**6, 4 * 10**6)]
    line = scale.project(runs, "scs")
    assert line is not None
    assert line["a_seconds"] == pytest.approx(5)
    assert line["b_seconds_per_row"] == pytest.approx(1e-6)
    assert line["largest_error_of_the_fit"] < 1e-9
    assert line["hours_for_12.8b_rows"] == pytest.approx(12805 / 3600)
    assert scale.project(runs[:1], "scs") is None


@pytest.mark.slow
def test_a_small_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        with memory_cap(600 * MB):
            pass
    except NoCap as error:
        pytest.skip(str(error))
    scale.main(["--rows", "20000", "40000", "--cap", str(600 * MB), "--dir", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    result = json.loads(lines[0])
    assert [run["rows"] for run in result["runs"]] == [20_000, 40_000]
    for run in result["runs"]:
        for name in ("scs", "top_fraction"):
            assert 0 < run[name]["peak_gb_anonymous"] < 0.6
            assert sum(run[name]["seconds_by_phase"].values()) == pytest.approx(
                run[name]["seconds"], abs=1
            )
    assert os.listdir(tmp_path) == []
