"""Samples of a tar shard as img2dataset writes it: image, caption and json, joined by key."""

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
from webdataset.gopen import gopen
from webdataset.tariterators import base_plus_ext, valid_sample

from datacomp_flyt.files.open_file import open_local
from datacomp_flyt.tars.nothing_usable import MemberCounts
from datacomp_flyt.tars.shards import is_stream

T = TypeVar("T")

Sample = dict[str, Any]
"""One example of a tar: bytes by file name extension, and `__key__` and `__url__`."""

IMAGES = ("jpg", "png", "jpeg", "webp")
"""Extensions of images; of several in a sample, open_clip takes the first."""

NO_IMAGE = "no image"
NO_CAPTION = "no caption"
NO_UID = "no uid in its json"
BAD_IMAGE = "image cannot be decoded"

_BLOCK = 512  # bytes, of a tar
_META = re.compile(r"__[^/]*__($|/)")  # webdataset's own
# What img2dataset writes is far within these: 512 pixels at the longer side, kilobytes of json.
_LARGEST = 1 << 28  # bytes of a member
_INFLATED = 32  # bytes of members for each of a compressed tar: images are compressed already
_LARGEST_JSON = 1 << 22  # bytes, of which Python makes a hundred times as many
_LONGEST = 1000  # sides of an image, in shorter ones: resizing makes the shorter one 224 pixels
# What people mean by .jpg and the like. Of Pillow's others, EPS would start Ghostscript.
_FORMATS = (
    "JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "PPM", "ICO", "JPEG2000",
)  # fmt: skip


class Skip(Exception):
    """An example is left out and counted under this reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class UnreadableShard(Exception):
    """A tar that is missing, damaged or cut short."""


class _Info(tarfile.TarInfo):
    """A header; of what follows it, all is read into memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Info:
        """As of the class above. Raises ReadError where it would not fit there."""
        info = super().frombuf(buf, encoding, errors)
        _check_size(info)
        return info


def _check_size(info: tarfile.TarInfo) -> None:
    if info.size > _LARGEST or info.issparse():
        raise tarfile.ReadError(f"its member {info.name!r} has {info.size:,} bytes")


class _Watched:
    """A stream of which the begin, the end and the length so far are remembered.

    tarfile takes a file that ends inside a header or its padding for a whole one.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._begin, self._end = b"", b""
        self.length = 0

    def read(self, size: int = -1) -> bytes:
        content: bytes = self._stream.read(size)
        if len(self._begin) < _BLOCK:
            self._begin = (self._begin + content)[:_BLOCK]
        self._end = (self._end + content)[-_BLOCK:]
        self.length += len(content)
        return content

    def close(self) -> None:
        self._stream.close()

    def check_end(self) -> None:
        """Raise EOFError where a plain tar lacks the empty block that every tar ends with.

        An empty tar is one record of zeros. Longer ones are files whose download only made room.
        """
        if self.length > tarfile.RECORDSIZE and not self._begin.strip(b"\0"):
            raise EOFError("it is nothing but zeros")
        if self._begin[257:262] == b"ustar" and self._end.strip(b"\0"):
            raise EOFError("it ends before the mark of its end")


def _members(stream: Any, url: str, seen: MemberCounts) -> Iterator[dict[str, Any]]:
    """The files of a tar that samples are made of, as webdataset's `tar_file_expander` has them.

    That takes members of any size, and so a file of a kilobyte that is to become terabytes.
    Whole batches are held, so many members that are each small enough are too much as well.
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
            _check_size(info)  # again, since a header before may have changed its size
            file = archive.extractfile(info)
            assert file is not None
            total += info.size
            if total > _INFLATED * stream.length + _LARGEST:
                raise tarfile.ReadError(
                    f"its first {stream.length:,} bytes are compressed from {total:,}"
                )
            yield {"fname": info.name, "data": file.read(), "__url__": url}
            archive.members = []  # type: ignore[attr-defined]


def read_tar(shard: str, seen: MemberCounts | None = None) -> Generator[Sample, None, None]:
    """The samples of one tar.

    Args:
        shard: the path of a local file, or a `Stream`, which webdataset opens.
        seen: a counter of the tar's members.

    Raises:
        UnreadableShard: the tar is damaged; raised after the samples that could be read.
    """
    try:
        stream, finished = _Watched(open_tar(shard)), False
        seen = MemberCounts() if seen is None else seen
        try:
            for sample in _samples(_members(stream, shard, seen), seen):
                seen.add(sample)
                yield sample
            while stream.read(1 << 20):  # what follows the last member, lest a command be cut off
                pass
            stream.check_end()
            finished = True
        finally:
            with contextlib.nullcontext() if finished else contextlib.suppress(Exception):
                stream.close()
    except Exception as error:  # tarfile, zlib, filesystems and commands raise a dozen kinds
        raise UnreadableShard(_first_line(error)) from error


def open_tar(shard: str) -> Any:
    """A stream of a tar's bytes; see `read_tar`."""
    return gopen(shard) if is_stream(shard) else open_local(shard)


def _samples(members: Iterator[dict[str, Any]], seen: MemberCounts) -> Iterator[Sample]:
    """Group adjacent members of one key into samples; a repeated extension begins a new sample.

    webdataset's `group_by_keys` raises an error there, open_clip's own function does not.
    """
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
    """The image file. Raises Skip where there is none."""
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
    """The transformed RGB image. Raises Skip where the file is no image or damaged."""
    try:
        with Image.open(io.BytesIO(content), formats=_formats()) as image:
            short, long = sorted(image.size)
            # Pillow itself only warns of as many pixels
            large = short * long > (Image.MAX_IMAGE_PIXELS or math.inf)
            if large or long > _LONGEST * short:
                raise Skip(BAD_IMAGE)
            rgb = image.convert("RGB")
    except Exception:  # Pillow's readers raise a dozen kinds
        raise Skip(BAD_IMAGE) from None
    return transform(rgb)


def caption(sample: Sample) -> str:
    """The text. Raises Skip where there is none."""
    try:
        text: str = sample["txt"].decode()
    except (KeyError, UnicodeDecodeError):
        raise Skip(NO_CAPTION) from None
    return text


def stored_uid(sample: Sample) -> str:
    """The uid in the sample's json; keys of img2dataset differ between downloads. Raises Skip."""
    uid = stored_facts(sample).get("uid")
    if not isinstance(uid, str) or not uid.isascii():
        raise Skip(NO_UID)
    return uid


def stored_facts(sample: Sample) -> dict[str, Any]:
    """The sample's json; empty where it has none that can be read."""
    content = sample.get("json", b"")
    try:
        facts = json.loads(content) if len(content) <= _LARGEST_JSON else None
    except (ValueError, RecursionError):
        facts = None
    return facts if isinstance(facts, dict) else {}


def _first_line(error: Exception) -> str:
    # webdataset appends to an error's arguments; the message is the first
    system = isinstance(error, OSError) and error.errno is not None
    text = str(error) if system else str((*error.args, "")[0])
    return text.strip().split("\n")[0] or type(error).__name__
