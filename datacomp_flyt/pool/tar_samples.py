"""Samples of a tar shard as img2dataset writes it: image, caption and json, joined by key."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from PIL import Image
from webdataset.gopen import gopen
from webdataset.tariterators import group_by_keys, tar_file_expander

T = TypeVar("T")

Sample = dict[str, Any]
"""One example of a tar: bytes by file name extension, and `__key__` and `__url__`."""

NO_IMAGE = "no image"
NO_CAPTION = "no caption"
NO_UID = "no uid in its json"
BAD_IMAGE = "image cannot be decoded"

_BLOCK = 512  # bytes, of a tar
_IMAGES = ("jpg", "png", "webp", "jpeg")


class Skip(Exception):
    """An example is left out and counted under this reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class UnreadableShard(Exception):
    """A tar that is missing, damaged or cut short."""


class _Watched:
    """A stream of which the begin and the end are remembered.

    tarfile takes a file that ends inside a header or its padding for a whole one.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._begin, self._end = b"", b""

    def read(self, size: int = -1) -> bytes:
        content: bytes = self._stream.read(size)
        if len(self._begin) < _BLOCK:
            self._begin = (self._begin + content)[:_BLOCK]
        self._end = (self._end + content)[-_BLOCK:]
        return content

    def close(self) -> None:
        self._stream.close()

    def check_end(self) -> None:
        """Raise EOFError where a plain tar lacks the empty block that every tar ends with."""
        if self._begin[257:262] == b"ustar" and self._end.strip(b"\0"):
            raise EOFError("it ends before the mark of its end")


def read_tar(url: str) -> Generator[Sample, None, None]:
    """The samples of one tar, a path or what webdataset opens.

    Raises:
        UnreadableShard: after the samples that could be read.
    """
    try:
        stream, finished = _Watched(gopen(url)), False
        try:
            yield from group_by_keys(tar_file_expander([{"url": url, "stream": stream}]))
            while stream.read(1 << 20):  # what follows the last member, lest a command be cut off
                pass
            stream.check_end()
            finished = True
        finally:
            with contextlib.nullcontext() if finished else contextlib.suppress(Exception):
                stream.close()
    except Exception as error:  # tarfile, zlib, filesystems and commands raise a dozen kinds
        raise UnreadableShard(_first_line(error)) from error


def stored_image(sample: Sample) -> bytes:
    """The image file. Raises Skip where there is none."""
    for extension in _IMAGES:
        if extension in sample:
            content: bytes = sample[extension]
            return content
    raise Skip(NO_IMAGE)


def decode(content: bytes, transform: Callable[[Image.Image], T]) -> T:
    """The transformed RGB image. Raises Skip where the file is no image or damaged."""
    try:
        with Image.open(io.BytesIO(content)) as image:
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
    try:
        uid = json.loads(sample["json"])["uid"]
    except (KeyError, TypeError, ValueError):
        uid = None
    if not isinstance(uid, str):
        raise Skip(NO_UID)
    return uid


def _first_line(error: Exception) -> str:
    # webdataset appends to an error's arguments; the message is the first
    text = str(error) if isinstance(error, FileNotFoundError) else str((*error.args, "")[0])
    return text.strip().split("\n")[0] or type(error).__name__
