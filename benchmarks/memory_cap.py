"""Caps the memory of a command and all its processes by a cgroup.

The page cache counts as memory too. At the cap, the kernel first drops pages of files, and kills a
process if there are none to drop.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_JOIN = 'echo $$ > "$0" && exec "$@"'  # sh script; arguments: path of cgroup.procs, command


class NoCap(Exception):
    """Raised if nothing on this machine can enforce a cap."""


@dataclass(frozen=True)
class MemoryCap:
    """A cgroup of version 1 or 2 with a cap, or systemd, which makes a cgroup for each command.

    Attributes:
        kind: "cgroup v1", "cgroup v2" or "systemd".
        folder: the folder of the cgroup; None until it is known, for "systemd".
        limit: the cap in bytes.
    """

    kind: str
    folder: Path | None
    limit: int

    def command(self, command: Sequence[str]) -> list[str]:
        """Return the words that run a command under the cap."""
        if self.folder is None:
            return [*_systemd_run(self.limit), *command]
        return ["sh", "-c", _JOIN, str(self.folder / "cgroup.procs"), *command]

    def of(self, process: int) -> MemoryCap:
        """Return the cap with a known folder: that of a running process's cgroup."""
        if self.folder is not None:
            return self
        for line in Path(f"/proc/{process}/cgroup").read_text().splitlines():
            hierarchy, controllers, path = line.split(":", 2)
            if hierarchy == "0" or "memory" in controllers.split(","):
                root = Path("/sys/fs/cgroup") / (controllers and "memory")
                folder = root / path.lstrip("/")
                if (folder / _FILES[_version(folder)][0]).exists():
                    return MemoryCap(self.kind, folder, self.limit)
        return self

    @property
    def holds(self) -> bool:
        """Return whether the kernel enforces this cap."""
        try:
            assert self.folder is not None
            return int((self.folder / self._file(0)).read_text()) <= self.limit
        except (OSError, ValueError, AssertionError):
            return False

    def peak_bytes(self) -> int | None:
        """Return the peak memory, page cache included; None if the kernel does not report it."""
        return self._number(self._file(1))

    def anonymous_bytes(self) -> int | None:
        """Return the anonymous memory, which the kernel cannot drop."""
        return self._number("memory.stat", "total_rss" if self._version == 1 else "anon")

    def kills(self) -> int | None:
        """Return the number of processes that the kernel killed to enforce the cap."""
        name = "memory.oom_control" if self._version == 1 else "memory.events"
        return self._number(name, "oom_kill")

    @property
    def _version(self) -> int:
        return 1 if self.folder is None else _version(self.folder)

    def _file(self, index: int) -> str:
        return _FILES[self._version][index]

    def _number(self, name: str, field: str | None = None) -> int | None:
        if self.folder is None:
            return None
        try:
            text = (self.folder / name).read_text()
        except OSError:
            return None
        if field is None:
            return int(text)
        fields = dict(line.split() for line in text.splitlines() if len(line.split()) == 2)
        return int(fields[field]) if field in fields else None


# files of cgroup versions 1 and 2: memory cap, peak memory, cap of memory and swap
_FILES = {
    1: ("memory.limit_in_bytes", "memory.max_usage_in_bytes", "memory.memsw.limit_in_bytes"),
    2: ("memory.max", "memory.peak", "memory.swap.max"),
}


@contextlib.contextmanager
def memory_cap(limit: int, roots: Sequence[Path] | None = None) -> Iterator[MemoryCap]:
    """Cap the memory of the commands that run in the block; they must end in it.

    Args:
        limit: the cap in bytes.
        roots: parent folders for the cgroup, the first usable is taken; None for this machine's.

    Raises:
        NoCap: no cgroup can be made here.
    """
    name = f"datacomp_flyt_scale_{os.getpid()}_{time.monotonic_ns()}"
    tried = []
    for root in _roots() if roots is None else roots:
        folder = root / name
        try:
            try:
                cap = _make(folder, limit)
            except OSError as error:
                tried.append(f"{root}: {error.strerror}")
                continue
            yield cap
            return
        finally:
            _remove(folder)
    if roots is None and _systemd_works(limit):
        yield MemoryCap("systemd", None, limit)
        return
    raise NoCap(
        f"no memory cap can be enforced here ({'; '.join(tried) or 'no cgroups'}; systemd-run does "
        "not work either): run as root, or in a container that may make cgroups"
    )


def _make(folder: Path, limit: int) -> MemoryCap:
    """Create a cgroup.

    Raises:
        OSError: the cgroup cannot be made, or does not cap memory.
    """
    folder.mkdir()
    version = _version(folder)
    cap, _, with_swap = (folder / file for file in _FILES[version])
    if not cap.exists():
        raise FileNotFoundError(errno.ENOENT, "no memory controller")
    cap.write_text(str(limit))
    if with_swap.exists():
        with_swap.write_text(str(limit if version == 1 else 0))
    return MemoryCap(f"cgroup v{version}", folder, limit)


def _version(folder: Path) -> int:
    return 1 if (folder / _FILES[1][0]).exists() else 2


def _roots() -> list[Path]:
    """Return this process's cgroups with a memory controller, and the mounts of these cgroups."""
    mounts, own = [], {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            own[controllers] = path.lstrip("/")
        for line in Path("/proc/mounts").read_text().splitlines():
            _, folder, kind, options, *_ = line.split()
            if kind == "cgroup" and "memory" in options.split(","):
                mounts.append((Path(folder), own.get("memory", "")))
            elif kind == "cgroup2":
                mounts.append((Path(folder), own.get("", "")))
    roots = [root for folder, path in mounts for root in (folder, folder / path)]
    return list(dict.fromkeys(roots))


def _systemd_run(limit: int) -> list[str]:
    caps = ["-p", f"MemoryMax={limit}", "-p", "MemorySwapMax=0"]
    return ["systemd-run", "--scope", "--quiet", *caps, "--"]


def _systemd_works(limit: int) -> bool:
    if shutil.which("systemd-run") is None:
        return False
    done = subprocess.run([*_systemd_run(limit), "true"], capture_output=True)
    return done.returncode == 0


def _remove(folder: Path) -> None:
    """Remove a cgroup, which is possible once its last process has ended."""
    for _ in range(50):
        try:
            folder.rmdir()
            return
        except OSError as error:
            if error.errno != errno.EBUSY:
                break
        time.sleep(0.1)
    shutil.rmtree(folder, ignore_errors=True)  # a plain folder, in tests
