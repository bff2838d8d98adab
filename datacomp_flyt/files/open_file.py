"""Opens and reads a file, local or in a cloud (fsspec), and turns failures into sentences."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from fsspec.implementations.local import LocalFileSystem
from numpy.typing import NDArray

from datacomp_flyt.errors import ChangedError, InputError, ReadError, unreadable
from datacomp_flyt.errors import first_line as first_line

# filesystems that may give an unchanged file another inode number
_RENUMBERING = ("fuse", "cifs", "smb3", "9p", "vfat", "exfat", "msdos", "ntfs")


class Version(NamedTuple):
    """The version of a file.

    Attributes:
        size: bytes.
        mark: time of the last change of a local file; of a cloud file its etag, or another value of
            its filesystem that changes with the content.
        changed, inode: for a local file, the time of the last change of its inode, which cannot be
            set, and the inode's number. A file of the same size and time that takes its place
            differs in one of them. So does a copy, and a file whose permissions changed, so
            notes that later runs compare leave both out.
    """

    size: int
    mark: str
    changed: int = 0
    inode: int = 0

    @property
    def content(self) -> tuple[int, str]:
        """The part of a version that a copy with preserved times shares."""
        return self.size, self.mark


def local_version(state: os.stat_result) -> Version:
    """The version of a local file."""
    return Version(state.st_size, str(state.st_mtime_ns), state.st_ctime_ns, state.st_ino)


def is_same(path: str, one: Version, other: Version) -> bool:
    """Return whether two versions of a file are the same."""
    return one == other or (one[:3] == other[:3] and _may_renumber(path))


def _may_renumber(path: str) -> bool:
    with contextlib.suppress(OSError, AttributeError):  # only Linux has the list
        device = os.stat(path).st_dev
        device_number = f"{os.major(device)}:{os.minor(device)}"
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            mount, _, kind = line.partition(" - ")
            if mount.split()[2] == device_number:
                return kind.startswith(_RENUMBERING)
    return False


def has_changed(path: str) -> ChangedError:
    """The error for a file that has changed since a run began."""
    return ChangedError(
        f"{path} has changed since this run began to read: nothing may change what a run reads, so "
        "run it again"
    )


def open_file(fs: Any, path: str, version: Version | None = None) -> io.BufferedIOBase:
    """Open a file whose reads return the requested number of bytes, except at its end.

    Args:
        fs, path: the file.
        version: the version noted before. The open file is compared with it, since the name may
            now belong to another file.

    Raises:
        OSError: the file cannot be opened, or a read returns nothing before the end.
        InputError: the local file has another version.
    """
    if not isinstance(fs, LocalFileSystem):
        return _FullReads(fs.open(path, "rb"))
    file = open_local(path)
    if version is not None and not is_same(path, local_version(os.fstat(file.fileno())), version):
        file.close()
        raise has_changed(path)
    return _FullReads(file)


def open_local(path: str) -> io.BufferedReader:
    """Open a local file for reading; its name is taken literally.

    Raises:
        OSError: the file cannot be opened, or is not a regular file.
    """
    check_regular(path)
    return open(path, "rb")


def check_regular(path: str) -> None:
    """Raise OSError for a folder, a pipe or a device, since opening it might wait forever."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", path)


def map_npy(path: str) -> NDArray[Any]:
    """Map the array of a local .npy file. Raises OSError, or what NumPy's parser raises."""
    check_regular(path)
    array: NDArray[Any] = np.lib.format.open_memmap(path, mode="r")  # np.load would also open a zip
    return array


class _FullReads(io.BufferedIOBase):
    """Repeats short reads of storage, which readers would take for the end of the file."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        wanted = -1 if size is None else size
        content: bytes = self._file.read(wanted)
        while wanted < 0 or len(content) < wanted:
            more = self._file.read(max(wanted - len(content), -1))
            if not more:
                if (offset := self.tell()) < (end := self.seek(0, io.SEEK_END)):
                    raise OSError(errno.EIO, f"nothing came of bytes {offset:,} to {end:,}")
                break
            content += more
        return content

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        position: int = self._file.seek(offset, whence)
        return position

    def tell(self) -> int:
        position: int = self._file.tell()
        return position

    def close(self) -> None:
        self._file.close()
        super().close()


@contextlib.contextmanager
def readable(path: str, form: str, way_out: str) -> Iterator[None]:
    """Turn any error of a reader in the block into a sentence.

    Args:
        path: the path of the file.
        form: the format that it is read as, for the message.
        way_out: the advice if the file is damaged.

    Raises:
        ReadError: storage failed.
        InputError: the file is damaged or does not exist; or the block raised it.
    """
    try:
        yield
    except InputError:
        raise
    except MemoryError as error:  # a damaged file may also claim any size
        raise InputError(
            f"{path}: there is not enough memory to read it as {form} ({first_line(error)}): free "
            f"some, or if it should be enough, {way_out}"
        ) from None
    except Exception as error:  # Arrow, zipfile, NumPy and filesystems raise many types
        kind = type(unreadable(path, error))
        if kind is ReadError:
            way_out = f"run it again, and if that fails too, {way_out}"
        raise kind(f"{path} cannot be read as {form} ({first_line(error)}): {way_out}") from None
