"""Members of plain tars, read in large blocks: what a subset leaves out should cost little.

tarfile spends 180 µs on the six headers of a pair (each file has one of its own for the time);
headers as img2dataset and the resharder write them are read here, in a sixth of that. At any other
header the rest of the tar, from there on, goes to webdataset's own reader, and so do damaged,
compressed and cut-off tars: what becomes of those, and what is said of them, stays the same.
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

_BLOCK = 512  # bytes: tars are made of such
_READ = 1 << 20  # bytes read at once
_END = bytes(_BLOCK)
_CHECKSUM = re.compile(rb"[0-7]{6}\0 ")
_SIZE = re.compile(rb"[0-7]{11}[\0 ]")
_TIME = re.compile(rb"(\d+) [amc]time=\d+(?:\.\d+)?\n")  # the one pax record of a usual header

# tarfile is strict with the first header of a file only, so put a harmless one before the rest
_FOLDER = tarfile.TarInfo(".")
_FOLDER.type = tarfile.DIRTYPE
_NOT_FIRST = _FOLDER.tobuf(tarfile.USTAR_FORMAT)


class BlockReader:
    """The trainer's `tarfile_to_samples_nothrow` with members read in blocks."""

    def __init__(self, module: str) -> None:
        """
        Args:
            module: the trainer's `data`; tars are opened and members grouped by its functions.
        """
        self._module = module

    def __call__(self, src: Iterable[Any], handler: Handler | None = None) -> Iterator[Sample]:
        """Samples of the tars that `src` names; errors go to `handler`, or are logged."""
        data: Any = importlib.import_module(self._module)
        handler = handler or data.log_and_continue
        members = iter_members(data.url_opener(src, handler=handler), handler)
        samples: Iterator[Sample] = data.group_by_keys_nothrow(members, handler=handler)
        return samples


def iter_members(sources: Iterable[Member], handler: Handler) -> Iterator[Member]:
    """What webdataset's `tar_file_expander` gives: `fname`, `data` and `__url__` of each file.

    Args:
        sources: `url` and `stream` of each tar.
        handler: says of an error whether to go on with the next tar.
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
    """A stream with bytes that were read ahead."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._error: Exception | None = None
        self._bytes, self._at = b"", 0

    def has(self, number: int) -> bool:
        """Whether so many bytes follow."""
        if len(self._bytes) - self._at < number:
            self._fill(number)
        return len(self._bytes) - self._at >= number

    def _fill(self, number: int) -> None:
        parts = [self._bytes[self._at :]]
        missing = number - len(parts[0])
        while missing > 0 and self._error is None:
            try:
                part = self._stream.read(max(_READ, missing))
            except Exception as error:  # said where tarfile would meet it
                self._error = error
                break
            if not part:
                break
            parts.append(part)
            missing -= len(part)
        self._bytes, self._at = b"".join(parts), 0

    def peek(self, start: int, stop: int) -> bytes:
        """Bytes [start, stop) from here on, as far as `has` made sure of them."""
        return self._bytes[self._at + start : self._at + stop]

    def skip(self, number: int) -> None:
        """Leave bytes behind."""
        self._at += number

    def at_end(self) -> bool:
        """Whether nothing follows, not even an error."""
        return not self.has(1) and self._error is None

    def put_back(self, content: bytes) -> None:
        """Let this come next."""
        self._bytes, self._at = content + self._bytes[self._at :], 0

    def read(self, size: int = -1) -> bytes:
        """As a file reads."""
        if self._at < len(self._bytes):
            size = len(self._bytes) if size < 0 else size
            part = self._bytes[self._at : self._at + size]
            self._at += len(part)
            return part
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        content: bytes = self._stream.read(size)
        return content

    def __str__(self) -> str:
        return str(self._stream)  # webdataset puts it into messages


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
    """Name of the next file and where its bytes are; None where tarfile should look at it."""
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
    """Size of a header's file; None unless the header is whole and its checksum right."""
    if len(header) != _BLOCK or not header.isascii():
        return None
    checksum, size = header[148:156], header[124:136]
    if not _CHECKSUM.fullmatch(checksum) or not _SIZE.fullmatch(size):
        return None
    # the low half of adler32 is 1 and the sum of all bytes, of which the checksum counts as blanks
    if (zlib.adler32(header) & 0xFFFF) - 1 != int(checksum[:6], 8) + sum(checksum) - 8 * ord(" "):
        return None
    return int(size[:11], 8)


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK
