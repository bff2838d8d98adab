"""Retries of shards: which errors are retried, and the pauses between."""

from __future__ import annotations

import errno
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable, Generator, Sequence
from typing import Any

import pyarrow as pa
import pytest

from datacomp_flyt.engines import shards
from datacomp_flyt.engines.engine import Engine, Outcome, T, TaskFactory, WorkerLost
from datacomp_flyt.engines.messages import pack, unpack
from datacomp_flyt.engines.shards import run_shards
from datacomp_flyt.errors import InputError, ReadError, unreadable


class Failing(Engine):
    """An engine whose items contain the error to yield, or None.

    Attributes:
        tried: names of each run.
    """

    def __init__(self, heals_after: int = 9) -> None:
        self.tried: list[list[str]] = []
        self._heals_after = heals_after

    def run(self, make: TaskFactory, items: Sequence[T]) -> Generator[Outcome[T, Any], None, None]:
        self.tried.append([name for name, _ in items])  # type: ignore[misc]
        for item in items:
            healed = len(self.tried) > self._heals_after
            yield Outcome(item, item[0], None if healed else item[1])  # type: ignore[index]


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr(shards.time, "sleep", found.append)
    return found


def run(engine: Engine, items: dict[str, Exception | None], retries: int = 2) -> dict[str, str]:
    written: list[str] = []

    def write(name: str, result: str) -> int:
        written.append(result)
        return 1

    errors = run_shards(engine, lambda device: print, items, write, retries, "test")
    assert sorted([*written, *errors]) == sorted(items), "each once"
    return {name: str(error) for name, error in errors.items()}


def test_giving_up_at_the_first_that_is_wrong() -> None:
    items = {"a": None, "b": ReadError("later"), "c": InputError("wrong"), "d": InputError("not")}
    written: list[str] = []
    engine = Failing()
    with pytest.raises(InputError, match=r"^wrong$"):
        run_shards(
            engine, lambda device: print, items, lambda name, _: written.append(name) or 1, 2,
            "test", give_up=True,
        )  # fmt: skip
    assert (written, len(engine.tried)) == (["a"], 1)


def test_what_is_wrong_with_a_shard_is_said_once(pauses: list[float]) -> None:
    engine = Failing()
    wrong = {"b": InputError("b is damaged"), "a": None, "c": InputError("c too")}
    assert run(engine, wrong) == {"b": "b is damaged", "c": "c too"}
    assert engine.tried == [["b", "a", "c"]]
    assert pauses == []


@pytest.mark.parametrize("error", [ReadError("no answer"), OSError("odd"), KeyError("odd")])
def test_what_may_pass_is_tried_after_a_pause(pauses: list[float], error: Exception) -> None:
    engine = Failing()
    assert run(engine, {"a": error, "b": None, "c": InputError("c")}).keys() == {"a", "c"}
    assert engine.tried == [["a", "b", "c"], ["a"], ["a"]]
    assert pauses == [1, 5]


def test_what_has_passed_is_no_error(pauses: list[float]) -> None:
    engine = Failing(heals_after=1)
    assert run(engine, {"a": ReadError("no answer"), "b": InputError("b")}) == {"b": "b"}
    assert engine.tried == [["a", "b"], ["a"]]
    assert pauses == [1]


def test_a_lost_worker_is_not_waited_for(pauses: list[float]) -> None:
    engine = Failing(heals_after=1)
    assert run(engine, {"a": WorkerLost("killed"), "b": None}) == {}
    assert engine.tried == [["a", "b"], ["a"]]
    assert pauses == []


def test_pauses_do_not_grow_for_ever(pauses: list[float]) -> None:
    assert run(Failing(heals_after=9999), {"a": ReadError("a")}, retries=2000) == {"a": "a"}
    assert pauses == [1, 5, 25, *[60] * 1997]


def test_no_retries(pauses: list[float]) -> None:
    assert run(Failing(), {"a": ReadError("a"), "b": None}, retries=0) == {"a": "a"}
    assert pauses == []


class Refused(Exception):
    """An error such as clients of clouds raise."""


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.EIO, "Input/output error"), ReadError),
        (ConnectionResetError(errno.ECONNRESET, "reset"), ReadError),
        (TimeoutError(), ReadError),
        (Refused("503"), ReadError),
        (OSError("Couldn't deserialize thrift: No more data to read"), InputError),
        (pa.ArrowInvalid("Parquet magic bytes not found"), InputError),
        (zipfile.BadZipFile("File is not a zip file"), InputError),
        (tarfile.ReadError("unexpected end of data"), InputError),
        (EOFError(), InputError),
        (OSError(errno.EINVAL, "Invalid argument"), InputError),
        (RuntimeError("File 'a.npy' is encrypted, password required"), InputError),
        (RecursionError("maximum recursion depth exceeded"), InputError),
        (AttributeError("'NoneType' object has no attribute 'read'"), InputError),
        (lzma.LZMAError("Corrupt input data"), InputError),
        (pa.lib.ArrowCapacityError("array cannot contain more than 2147483646 bytes"), InputError),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), InputError),
        (PermissionError(errno.EACCES, "Permission denied"), InputError),
    ],
)
def test_storage_or_content(error: Exception, kind: Callable[[str], InputError]) -> None:
    found = unreadable("a.parquet cannot be read", error)
    assert type(found) is kind
    assert type(unpack(pack(found))) is kind


class Failed(io.BytesIO):
    """A file on a disk that fails."""

    def read(self, size: int | None = -1) -> bytes:
        raise OSError(errno.EIO, "Input/output error")


def test_a_reader_that_keeps_the_reason_to_itself() -> None:
    with pytest.raises(zipfile.BadZipFile) as caught:
        zipfile.ZipFile(Failed(bytes(100)))
    assert type(unreadable("a.npz cannot be read", caught.value)) is ReadError
