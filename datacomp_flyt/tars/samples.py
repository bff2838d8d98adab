"""Reads the samples of a tar shard as img2dataset writes it: image, caption and json by key.

webdataset is imported when a tar is opened, since it imports torch where that is installed.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import math
import re
import tarfile
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeVar

from PIL import Image

from datacomp_flyt.files.open_file import open_local
from datacomp_flyt.installation import needs_extra
from datacomp_flyt.tars.nothing_usable import MemberCounts
from datacomp_flyt.tars.shards import is_stream

T = TypeVar("T")

Sample = dict[str, Any]
"""A sample of a tar: bytes by file name extension, and `__key__` and `__url__`."""

IMAGES = ("jpg", "png", "jpeg", "webp")
"""Extensions of images; if a sample has several images, open_clip takes the first of these."""

NO_IMAGE = "no image"
NO_CAPTION = "no caption"
NO_UID = "no uid in its json"
BAD_IMAGE = "image cannot be decoded"

_BLOCK = 512  # bytes, of a tar
_META = re.compile(r"__[^/]*__($|/)")  # names of webdataset's own members
# Limits far above what img2dataset writes: 512 pixels at the longer side, kilobytes of json.
_LARGEST = 1 << 28  # bytes of a member
_MOST_INFLATED = 32  # decompressed bytes per byte of a tar: images are compressed already
_LARGEST_JSON = 1 << 22  # bytes; Python objects take a hundred times as many
_LARGEST_ASPECT_RATIO = 1000  # resizing makes the shorter side 224 pixels
# The formats that people store as .jpg and the like. Pillow has others: EPS starts Ghostscript.
_FORMATS = (
    "JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "PPM", "ICO", "JPEG2000",
)  # fmt: skip


class Skip(Exception):
    """Raised for a sample that is left out and counted under a reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class UnreadableShard(Exception):
    """A tar that is missing, damaged or cut short."""


class _Info(tarfile.TarInfo):
    """A header that refuses large members: tarfile reads extended headers into memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Info:
        """Parse a header. Raises ReadError if its member is too large to be held in memory."""
        info = super().frombuf(buf, encoding, errors)
        _check_size(info)
        return info


def _check_size(info: tarfile.TarInfo) -> None:
    if info.size > _LARGEST or info.issparse():
        raise tarfile.ReadError(f"its member {info.name!r} has {info.size:,} bytes")


class _CheckedStream:
    """Keeps the first and last bytes and the length of a stream, to detect a truncated tar.

    tarfile accepts a file that ends inside a header or its padding as complete.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._head, self._tail = b"", b""
        self.length = 0

    def read(self, size: int = -1) -> bytes:
        content: bytes = self._stream.read(size)
        if len(self._head) < _BLOCK:
            self._head = (self._head + content)[:_BLOCK]
        self._tail = (self._tail + content)[-_BLOCK:]
        self.length += len(content)
        return content

    def close(self) -> None:
        self._stream.close()

    def check_end(self) -> None:
        """Raise EOFError unless a plain tar ends with the empty block that marks the end.

        An empty tar is one record of zeros. A longer file of zeros was allocated by a download
        that never wrote it.
        """
        if self.length > tarfile.RECORDSIZE and not self._head.strip(b"\0"):
            raise EOFError("it is nothing but zeros")
        if self._head[257:262] == b"ustar" and self._tail.strip(b"\0"):
            raise EOFError("it ends before the mark of its end")


def _members(stream: Any, url: str, seen: MemberCounts) -> Iterator[dict[str, Any]]:
    """Yield the files of a tar as webdataset's `tar_file_expander` does, within size limits.

    webdataset accepts members of any size, so that a compressed file of a kilobyte could fill the
    memory. Whole batches are held, so the total size is limited as well.
    """
    total = 0
    with tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Info) as archive:
        for info in archive:
            if _META.match(info.name):
                seen.add_member("named __...__")
                continue
            if not info.isreg():
                seen.add_member("folders and links")
                continue
            _check_size(info)  # again, since an extended header may have changed the size
            file = archive.extractfile(info)
            assert file is not None
            total += info.size
            if total > _MOST_INFLATED * stream.length + _LARGEST:
                raise tarfile.ReadError(
                    f"its first {stream.length:,} bytes are compressed from {total:,}"
                )
            yield {"fname": info.name, "data": file.read(), "__url__": url}
            archive.members = []  # type: ignore[attr-defined]


def require_webdataset() -> None:
    """Raise InputError if webdataset, which opens tars, is not installed."""
    with needs_extra("train"):
        import webdataset  # noqa: F401


def read_tar(shard: str, seen: MemberCounts | None = None) -> Generator[Sample, None, None]:
    """Yield the samples of one tar.

    Args:
        shard: the path of a local file, or a `Stream`, which webdataset opens.
        seen: a counter of the tar's members.

    Raises:
        UnreadableShard: the tar is damaged; raised after the samples that could be read.
        InputError: webdataset is not installed.
    """
    require_webdataset()
    try:
        stream, finished = _CheckedStream(open_tar(shard)), False
        seen = MemberCounts() if seen is None else seen
        try:
            for sample in _samples(_members(stream, shard, seen), seen):
                seen.add(sample)
                yield sample
            while stream.read(1 << 20):  # to the end, or a command that writes it would fail
                pass
            stream.check_end()
            finished = True
        finally:
            with contextlib.nullcontext() if finished else contextlib.suppress(Exception):
                stream.close()
    except Exception as error:  # tarfile, zlib, filesystems and commands raise a dozen kinds
        raise UnreadableShard(_first_line(error)) from error


def open_tar(shard: str) -> Any:
    """Open a tar as a stream of bytes; see `read_tar`."""
    if not is_stream(shard):
        return open_local(shard)
    from webdataset.gopen import gopen

    return gopen(shard)


def _samples(members: Iterator[dict[str, Any]], seen: MemberCounts) -> Iterator[Sample]:
    """Group adjacent members of one key into samples; a repeated extension begins a new sample.

    open_clip's loader does the same, and webdataset's `group_by_keys` raises an error.
    """
    from webdataset.tariterators import base_plus_ext, valid_sample

    sample: Any = None
    for member in members:
        key, extension = base_plus_ext(member["fname"])
        if key is None:
            seen.add_member("without an extension")
            continue
        extension = extension.lower()
        if sample is None or key != sample["__key__"] or extension in sample:
            if valid_sample(sample):
                yield sample
            sample = {"__key__": key, "__url__": member["__url__"]}
        sample[extension] = member["data"]
    if valid_sample(sample):
        yield sample


def stored_image(sample: Sample) -> bytes:
    """Return the content of the image file. Raises Skip if there is none."""
    for extension in IMAGES:
        if extension in sample:
            content: bytes = sample[extension]
            return content
    raise Skip(NO_IMAGE)


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)  # older Pillows lack AVIF


def decode(content: bytes, transform: Callable[[Image.Image], T]) -> T:
    """Decode an image to RGB and transform it. Raises Skip if it is no image or damaged."""
    try:
        with Image.open(io.BytesIO(content), formats=_formats()) as image:
            short, long = sorted(image.size)
            # Pillow only warns of an image of so many pixels
            large = short * long > (Image.MAX_IMAGE_PIXELS or math.inf)
            if large or long > _LARGEST_ASPECT_RATIO * short:
                raise Skip(BAD_IMAGE)
            rgb = image.convert("RGB")
    except Exception:  # Pillow's readers raise a dozen kinds
        raise Skip(BAD_IMAGE) from None
    return transform(rgb)


def caption(sample: Sample) -> str:
    """Return the caption. Raises Skip if there is none."""
    try:
        text: str = sample["txt"].decode()
    except (KeyError, UnicodeDecodeError):
        raise Skip(NO_CAPTION) from None
    return text


def stored_uid(sample: Sample) -> str:
    """Return the uid in the sample's json. Raises Skip if there is none.

    img2dataset's keys are no substitute, since they differ between downloads.
    """
    uid = stored_facts(sample).get("uid")
    if not isinstance(uid, str) or not uid.isascii():
        raise Skip(NO_UID)
    return uid


def stored_facts(sample: Sample) -> dict[str, Any]:
    """Return the content of the sample's json; empty if there is none that can be parsed."""
    content = sample.get("json", b"")
    try:
        facts = json.loads(content) if len(content) <= _LARGEST_JSON else None
    except (ValueError, RecursionError):
        facts = None
    return facts if isinstance(facts, dict) else {}


def _first_line(error: Exception) -> str:
    # webdataset appends arguments to an error; the first one is the message
    system = isinstance(error, OSError) and error.errno is not None
    text = str(error) if system else str((*error.args, "")[0])
    return text.strip().split("\n")[0] or type(error).__name__
