"""Reads the members of plain tars in large blocks, so that skipping samples is cheap.

tarfile spends 180 µs on the six headers of a pair (each file has a pax header for its time).
Headers as img2dataset and the resharder write them are parsed here in a sixth of that. At any other
header webdataset's own reader reads the rest of the tar, and so it does for damaged, compressed and
truncated tars: their samples and their messages stay the same.
"""

from __future__ import annotations

import importlib
import re
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from webdataset.tariterators import tar_file_iterator

from datacomp_flyt.tars.samples import Sample

Member = dict[str, Any]
Handler = Callable[[Exception], bool]

_BLOCK = 512  # bytes of a tar block
_READ = 1 << 20  # bytes of a read
_END = bytes(_BLOCK)
_CHECKSUM = re.compile(rb"[0-7]{6}\0 ")
_SIZE = re.compile(rb"[0-7]{11}[\0 ]")
_TIME = re.compile(rb"(\d+) [amc]time=\d+(?:\.\d+)?\n")  # the only pax record in a usual header

# tarfile is strict with the first header of a file only, so a harmless one goes before the rest
_FOLDER = tarfile.TarInfo(".")
_FOLDER.type = tarfile.DIRTYPE
_NOT_FIRST = _FOLDER.tobuf(tarfile.USTAR_FORMAT)


class BlockReader:
    """The trainer's `tarfile_to_samples_nothrow` with members read in blocks."""

    def __init__(self, module: str) -> None:
        """
        Args:
            module: the name of the trainer's `data`, whose functions open tars and group members.
        """
        self._module = module

    def __call__(self, src: Iterable[Any], handler: Handler | None = None) -> Iterator[Sample]:
        """Yield the samples of the tars in `src`; errors go to `handler`, or are logged."""
        data: Any = importlib.import_module(self._module)
        handler = handler or data.log_and_continue
        members = iter_members(data.url_opener(src, handler=handler), handler)
        samples: Iterator[Sample] = data.group_by_keys_nothrow(members, handler=handler)
        return samples


def iter_members(sources: Iterable[Member], handler: Handler) -> Iterator[Member]:
    """Yield `fname`, `data` and `__url__` of each file, as webdataset's `tar_file_expander` does.

    Args:
        sources: `url` and `stream` of each tar.
        handler: decides whether to continue with the next tar after an error.
    """
    for source in sources:
        try:
            for name, content in _members_of(source["stream"], handler):
                yield {"fname": name, "data": content, "__url__": source["url"]}
        except Exception as error:  # as webdataset does it
            error.args = (*error.args, source["stream"], source["url"])
            if not handler(error):
                break


class _Buffer:
    """A stream with read-ahead."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._error: Exception | None = None
        self._bytes, self._position = b"", 0

    def has(self, num_bytes: int) -> bool:
        """Return whether this number of bytes follows, after reading them into the buffer."""
        if len(self._bytes) - self._position < num_bytes:
            self._fill(num_bytes)
        return len(self._bytes) - self._position >= num_bytes

    def _fill(self, num_bytes: int) -> None:
        parts = [self._bytes[self._position :]]
        missing = num_bytes - len(parts[0])
        while missing > 0 and self._error is None:
            try:
                part = self._stream.read(max(_READ, missing))
            except Exception as error:  # raised later, where tarfile would meet it
                self._error = error
                break
            if not part:
                break
            parts.append(part)
            missing -= len(part)
        self._bytes, self._position = b"".join(parts), 0

    def peek(self, start: int, stop: int) -> bytes:
        """Return bytes [start, stop) from the current position, as far as `has` has read them."""
        return self._bytes[self._position + start : self._position + stop]

    def skip(self, num_bytes: int) -> None:
        """Advance by a number of buffered bytes."""
        self._position += num_bytes

    def at_end(self) -> bool:
        """Return whether neither bytes nor an error follow."""
        return not self.has(1) and self._error is None

    def put_back(self, content: bytes) -> None:
        """Insert bytes at the current position."""
        self._bytes, self._position = content + self._bytes[self._position :], 0

    def read(self, size: int = -1) -> bytes:
        """Read like a file."""
        if self._position < len(self._bytes):
            size = len(self._bytes) if size < 0 else size
            part = self._bytes[self._position : self._position + size]
            self._position += len(part)
            return part
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        content: bytes = self._stream.read(size)
        return content

    def __str__(self) -> str:
        return str(self._stream)  # for webdataset's messages


def _members_of(stream: Any, handler: Handler) -> Iterator[tuple[str, bytes]]:
    buffer, first = _Buffer(stream), True
    while True:
        buffer.has(4 * _BLOCK)
        usual = _usual_member(buffer)
        if usual is None:
            break
        name, start, stop = usual
        content = buffer.peek(start, stop)
        buffer.skip(start + _padded(stop - start))
        first = False
        yield name, content
    if not first and (buffer.peek(0, _BLOCK) == _END or buffer.at_end()):
        return
    if not first:
        buffer.put_back(_NOT_FIRST)
    for member in tar_file_iterator(buffer, handler=handler):
        yield member["fname"], member["data"]


def _usual_member(buffer: _Buffer) -> tuple[str, int, int] | None:
    """Return name, start and stop of the next file; None if tarfile has to read it."""
    header, start = buffer.peek(0, _BLOCK), _BLOCK
    if header[156:157] == b"x":
        size = _size(header)
        if size is None or size > _BLOCK:
            return None
        record = _TIME.fullmatch(buffer.peek(_BLOCK, _BLOCK + size))
        if record is None or int(record[1]) != size:
            return None
        header, start = buffer.peek(2 * _BLOCK, 3 * _BLOCK), 3 * _BLOCK
    size = _size(header)
    if size is None or header[156:157] != b"0" or header[345]:  # a name in two parts
        return None
    name = header[:100].partition(b"\0")[0]
    if name.startswith(b"__") or not buffer.has(start + _padded(size)):
        return None
    return name.decode("ascii"), start, start + size


def _size(header: bytes) -> int | None:
    """Return the size of a header's file; None if the header or its checksum is damaged."""
    if len(header) != _BLOCK or not header.isascii():
        return None
    checksum, size = header[148:156], header[124:136]
    if not _CHECKSUM.fullmatch(checksum) or not _SIZE.fullmatch(size):
        return None
    # the low half of adler32 is 1 plus the sum of all bytes; the sum counts the checksum as blanks
    if (zlib.adler32(header) & 0xFFFF) - 1 != int(checksum[:6], 8) + sum(checksum) - 8 * ord(" "):
        return None
    return int(size[:11], 8)


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK
