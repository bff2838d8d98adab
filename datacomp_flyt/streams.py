"""Prints lines with escaped names. A failure to print never ends a job.

`say` is the package's only `print`. `protected` keeps writes to stdout and stderr from raising, so
that a closed pipe, a full disk or a closed descriptor does not end a job.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from datacomp_flyt.errors import printable


def say(*lines: object, error: bool = False) -> None:
    """Print lines with control characters escaped.

    Args:
        lines: the lines, which may quote names from files.
        error: print to stderr instead of stdout.
    """
    text = "\n".join(printable(str(line)) for line in lines)
    print(text, file=sys.stderr if error else sys.stdout)


class ProtectedStream:
    """A text stream whose writes never raise.

    After a failure its descriptor is /dev/null, so that the interpreter's last flush and libraries
    that hold the stream do not fail either.

    Attributes:
        stream: the stream itself.
        failure: the text of a failure other than a closed pipe, or None.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.failure: str | None = None

    def write(self, text: str) -> int:
        """Write the text; drop it if that fails."""
        with self._dropping():
            self.stream.write(text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each text; drop it if that fails."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush the stream; drop its content if that fails."""
        with self._dropping():
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    @contextlib.contextmanager
    def _dropping(self) -> Iterator[None]:
        try:
            yield
        except BlockingIOError:  # the pipe is non-blocking and its reader is slow
            with contextlib.suppress(OSError, ValueError):
                os.set_blocking(self.stream.fileno(), True)
        except (OSError, ValueError) as error:  # ValueError: the stream is closed
            code = getattr(error, "errno", None)
            if code != errno.EPIPE and self.failure is None:
                self.failure = getattr(error, "strerror", None) or str(error)
            with contextlib.suppress(OSError, ValueError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self.stream.fileno())
                os.close(null)


@contextlib.contextmanager
def protected(program: str) -> Iterator[None]:
    """Protect stdout and stderr while the block runs, and report a failed stdout at its end.

    Characters that the encoding lacks are escaped. Each complete line is written at once, so that a
    log shows the progress of its job.

    Args:
        program: the name of the command, for the report.
    """
    _open_descriptors()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_protect(name) for name in ("stdout", "stderr"))
    try:
        yield
    finally:
        streams: list[Any] = [sys.stdout, sys.stderr]
        for stream in streams:
            stream.flush()
        failure = getattr(streams[0], "failure", None)
        # in a nested block, the outer one reports it
        if failure is not None and streams[0] is not before[0]:
            say(
                f"{program}: note: stdout cannot be written ({failure}), so not all is printed; "
                "the exit code says how it ended",
                error=True,
            )
        for name, stream in zip(("stdout", "stderr"), before, strict=True):
            if stream is not None:
                setattr(sys, name, stream)


def _protect(name: str) -> Any:
    stream = getattr(sys, name)
    if isinstance(stream, ProtectedStream):
        return stream
    if stream is None:  # closed when Python started
        descriptor = ("stdin", "stdout", "stderr").index(name)
        stream = open(descriptor, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    with contextlib.suppress(AttributeError, OSError, ValueError):  # another type, or closed
        stream.reconfigure(errors="backslashreplace", line_buffering=True)
    return ProtectedStream(stream)


def _open_descriptors() -> None:
    """Open /dev/null for standard streams that are closed.

    Otherwise the next file that is opened would get the descriptor and receive the output.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
            with contextlib.suppress(OSError):
                os.set_inheritable(descriptor, True)
