"""Selection of pools larger than memory, under a cap that the kernel enforces.

`python -m benchmarks.scale [--rows 128000000 256000000 512000000]` prints one JSON line.

For each number of rows, the benchmark generates a pool (parquet files of uids and two scores) and
drops it from the page cache. Then the command `python -m baselines_plugin --work_dir` mixes the
standardised scores and draws by Soft Cap Sampling as many examples as there are rows, from parquet
to .npy. A second command selects the top fraction from the same work folder. The cap holds for all
processes together and includes the page cache. Pools and work folders are removed after use.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import ROOT, print_result, say
from benchmarks.memory_cap import MemoryCap, NoCap, memory_cap
from benchmarks.scale_pool import COLUMNS, make_pool
from datacomp_flyt.exits import Parser

_PHASES = ("start", "partitioning", "sorting", "mixing_and_sampling", "writing")
_POLL = 0.2  # seconds
_LARGE, _XLARGE = 1_280_000_000, 12_800_000_000
_FRACTION = 0.3

# bytes a row: the pool, by compression; the runs of the sort; sorted uids and columns; mixed score
# and counts; the subset; and with G > 1 the timers, one for each draw and one for each example
_POOL = {"zstd": 25, "snappy": 41, "none": 45}
_RUNS = _SORTED = 16 + 4 * len(COLUMNS)
_COUNTS, _SUBSET, _TIMER = 4, 16, 32
_RESERVE = 1 << 30

_ASSUMPTIONS = (
    "seconds = a + b * rows, fitted by least squares to the runs above; the machine, its two cores "
    "and the cap stay the same; pool, --work_dir and subset lie on a local disk as fast as this "
    "one, with room for all; two score columns of float32; as many draws as rows"
)


def bytes_needed(rows: int, draws: int, compression: str, batch_size: int) -> int:
    """Return the peak disk space of a pool, its sort, its timers and its subset."""
    sampling = (_SORTED + _COUNTS) * rows
    timers = _TIMER * (rows + draws) if batch_size > 1 else 0
    most = max((_RUNS + _SORTED) * rows, sampling + timers, sampling + _SUBSET * draws)
    return _POOL[compression] * rows + most


def refuse_without_room(
    folder: Path, rows: Sequence[int], draws: float, compression: str, batch_size: int
) -> None:
    """Raise SystemExit if the disk has no space for the largest pool."""
    most = max(rows)
    need = bytes_needed(most, int(draws * most), compression, batch_size) + _RESERVE
    free = shutil.disk_usage(folder).free
    if need > free:
        raise SystemExit(
            f"{most:,} rows need {need / 1e9:.1f} GB of disk and {folder} has {free / 1e9:.1f} GB "
            "free: lower --rows, or name a larger disk with --dir"
        )


class Watch:
    """Records the time and I/O of a running command by phase.

    Attributes:
        seconds, read_bytes, written_bytes: totals by phase; the bytes are those of disks.
        disk_peak: the largest rise of the used space of the file system, which includes unnamed
            temporary files and files of other programs.
        anonymous_peak: the largest anonymous memory at the times of measurement.
    """

    def __init__(self, work: Path, save_path: Path) -> None:
        self._work, self._save_path = work, save_path
        self.seconds, self.read_bytes, self.written_bytes = (
            dict.fromkeys(_PHASES, 0.0),
            dict.fromkeys(_PHASES, 0),
            dict.fromkeys(_PHASES, 0),
        )
        self.disk_peak = self.anonymous_peak = 0
        self._used = shutil.disk_usage(save_path.parent).used
        self._phase, self._time, self._moved = "start", time.perf_counter(), (0, 0)

    def look(self, process: int, cap: MemoryCap) -> None:
        """Add the time and I/O since the last call to the phase of that call."""
        now = time.perf_counter()
        moved = tuple(map(max, self._moved, _moved_bytes(process)))
        self.seconds[self._phase] += now - self._time
        self.read_bytes[self._phase] += moved[0] - self._moved[0]
        self.written_bytes[self._phase] += moved[1] - self._moved[1]
        self._time, self._moved = now, (moved[0], moved[1])
        used = shutil.disk_usage(self._save_path.parent).used
        self.disk_peak = max(self.disk_peak, used - self._used)
        self.anonymous_peak = max(self.anonymous_peak, cap.anonymous_bytes() or 0)
        self._phase = max(self._phase, self._phase_now(), key=_PHASES.index)

    def _phase_now(self) -> str:
        for unfinished in self._save_path.parent.glob(f".{self._save_path.name}.*"):
            with contextlib.suppress(OSError):
                if (
                    unfinished.stat().st_size
                ):  # an empty file only tests at the start that it can be written
                    return "writing"
        if not (self._work / "partitioned").exists():
            return "start"
        if not (self._work / "uids.npy").exists():
            return "partitioning"
        return "sorting" if any((self._work / "partitioned").iterdir()) else "mixing_and_sampling"


def run_capped(
    command: Sequence[str], cap: MemoryCap, watch: Watch, log: Path
) -> tuple[float, float]:
    """Run a command under a cap; return its wall seconds and its processor seconds.

    Raises:
        SystemExit: the command failed, was killed, or ran without the cap.
    """
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    before = os.times()
    start = time.perf_counter()
    with log.open("w") as file:
        child = subprocess.Popen(cap.command(command), cwd=ROOT, env=env, stdout=file, stderr=file)
        held = False
        while child.poll() is None:
            held = held or (cap := cap.of(child.pid)).holds
            watch.look(child.pid, cap)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_POLL)
    seconds = time.perf_counter() - start
    after = os.times()
    busy = after.children_user + after.children_system
    if child.returncode:
        kills = cap.kills()
        raise SystemExit(
            f"the command ended with {child.returncode} under a cap of {cap.limit:,} bytes"
            + (f"; the kernel killed {kills} processes for memory" if kills else "")
            + f":\n{log.read_text()[-2000:]}"
        )
    if not held:
        raise SystemExit("the command ran without its cap: nothing was measured")
    return seconds, busy - before.children_user - before.children_system


def measure(args: argparse.Namespace, rows: int, folder: Path) -> dict[str, Any]:
    """Generate a pool in a folder, and select from it in both ways."""
    say(f"generating {rows:,} rows in {folder}")
    pool, work = folder / "metadata", folder / "work"
    pool_bytes = make_pool(pool, rows, args.seed, args.num_workers, args.compression)
    draws = int(args.draws_per_row * rows)
    mixed = ["--name", "standardized_sum", "--score_columns", *COLUMNS, "--seed", str(args.seed)]
    rounds = [
        "--repetition_penalty",
        "0.15",
        "--sampling_batch_size",
        str(args.sampling_batch_size),
    ]
    jobs = {
        "scs": ["--sampling", "scs", *rounds, "--num_samples", str(draws)],
        "top_fraction": ["--sampling", "top_fraction", "--fraction", str(_FRACTION)],
    }
    result: dict[str, Any] = {"rows": rows, "pool_bytes": pool_bytes}
    for name, sampling in jobs.items():
        forget_pages(folder)
        saved = folder / name / "subset.npy"
        saved.parent.mkdir()
        command = [sys.executable, "-m", "baselines_plugin", *mixed, *sampling]
        command += ["--metadata_dir", str(pool), "--work_dir", str(work)]
        command += ["--save_path", str(saved), "--num_workers", str(args.num_workers)]
        say(f"{name} of {rows:,} rows under {args.cap:,} bytes")
        watch = Watch(work, saved)
        with memory_cap(args.cap) as cap:
            seconds, busy = run_capped(command, cap, watch, folder / f"{name}.log")
            peak, kind, kills = cap.peak_bytes(), cap.kind, cap.kills()
        expected = draws if name == "scs" else int(_FRACTION * rows)
        if len(np.load(saved, mmap_mode="r")) != expected:
            raise SystemExit(f"{name}: the subset does not have {expected:,} entries")
        shutil.rmtree(saved.parent)
        result[name] = {
            "seconds": seconds,
            "rows_per_second": rows / seconds,
            "processor_seconds": busy,
            "seconds_by_phase": watch.seconds,
            "read_gb_by_phase": {key: size / 1e9 for key, size in watch.read_bytes.items()},
            "written_gb_by_phase": {key: size / 1e9 for key, size in watch.written_bytes.items()},
            "peak_gb_anonymous": watch.anonymous_peak / 1e9,
            "peak_gb_with_page_cache": None if peak is None else peak / 1e9,
            "killed_for_memory": kills,
            "peak_gb_of_disk_beside_the_pool": watch.disk_peak / 1e9,
            "cap": kind,
        }
        say(f"{name}: {seconds:.0f} s, {rows / seconds:,.0f} rows/s")
    return result


def forget_pages(folder: Path) -> None:
    """Drop the files of a folder from the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                if hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def project(runs: Sequence[dict[str, Any]], name: str) -> dict[str, Any] | None:
    """Fit seconds = a + b * rows and extrapolate to large and xlarge; None for a single run."""
    rows = np.array([run["rows"] for run in runs], np.float64)
    seconds = np.array([run[name]["seconds"] for run in runs], np.float64)
    if len(runs) < 2:
        return None
    per_row, constant = np.polyfit(rows, seconds, 1).tolist()
    fitted = constant + per_row * rows
    return {
        "a_seconds": constant,
        "b_seconds_per_row": per_row,
        "largest_error_of_the_fit": float(np.abs(seconds / fitted - 1).max()),
        "hours_for_1.28b_rows": (constant + per_row * _LARGE) / 3600,
        "hours_for_12.8b_rows": (constant + per_row * _XLARGE) / 3600,
    }


def _moved_bytes(process: int) -> tuple[int, int]:
    """Return the bytes that a process and its children have read from and written to disks.

    The numbers of a parent include those of children that have ended.
    """
    read = written = 0
    for one in (process, *_children(process)):
        with contextlib.suppress(OSError, ValueError):
            lines = Path(f"/proc/{one}/io").read_text().splitlines()
            fields = dict(line.split(": ") for line in lines)
            read += int(fields["read_bytes"])
            written += int(fields["write_bytes"])
    return read, written


def _children(process: int) -> Iterator[int]:
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{process}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield int(child)
                yield from _children(int(child))


def main(words: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--rows", type=int, nargs="+", default=[128_000_000, 256_000_000, 512_000_000])
    add("--cap", type=int, default=2_000_000_000, help="bytes of memory (default: %(default)s)")
    add("--draws_per_row", type=float, default=1.0, help="draws of Soft Cap Sampling for each row")
    add("--sampling_batch_size", type=int, default=1, help="G of Soft Cap Sampling")
    add("--num_workers", type=int, default=2)
    add("--seed", type=int, default=0)
    add(
        "--compression", choices=list(_POOL), default="zstd", help="compression of the pool's files"
    )
    add(
        "--dir",
        type=Path,
        default=Path(tempfile.gettempdir()),
        help="folder on a disk with enough space",
    )
    add("--keep", action="store_true", help="do not remove pools and folders")
    args = parser.parse_args(words)
    if min(args.rows) < 1 or args.num_workers < 1 or not args.draws_per_row > 0:
        parser.error("--rows, --num_workers and --draws_per_row are more than 0")
    if not 1 <= args.sampling_batch_size <= min(args.rows):
        parser.error("--sampling_batch_size is from 1 to --rows")
    args.dir = args.dir.resolve()
    refuse_without_room(
        args.dir, args.rows, args.draws_per_row, args.compression, args.sampling_batch_size
    )
    runs = []
    try:
        with memory_cap(args.cap):
            pass
        for rows in args.rows:
            folder = Path(tempfile.mkdtemp(dir=args.dir, prefix=f"scale_{rows}_"))
            try:
                runs.append(measure(args, rows, folder))
            finally:
                if not args.keep:
                    shutil.rmtree(folder)
    except NoCap as error:
        raise SystemExit(str(error)) from None
    result = {
        "cap_bytes": args.cap,
        "num_workers": args.num_workers,
        "score_columns": len(COLUMNS),
        "draws_per_row": args.draws_per_row,
        "sampling_batch_size": args.sampling_batch_size,
        "compression": args.compression,
        "seconds_are": "wall time of the command, start of Python and imports included; no file of "
        "the pool in the page cache before it",
        "runs": runs,
        "projection": {name: project(runs, name) for name in ("scs", "top_fraction")},
        "top_fraction_is": "from the folder that scs has sorted; from parquet, add the seconds of "
        "its phases partitioning and sorting",
        "assumptions": _ASSUMPTIONS,
    }
    print_result("scale", result)


if __name__ == "__main__":
    main()
