"""Fixtures of the hook's tests."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture
def closed_streams(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close the files that the trainer's reader leaves open, and wait for its commands."""
    from tests.open_clip_hook.tar_readers import DATA

    streams: list[Any] = []
    stock = DATA.url_opener

    def url_opener(*args: Any, **named: Any) -> Iterator[Any]:
        for source in stock(*args, **named):
            streams.append(source["stream"])
            yield source

    monkeypatch.setattr(DATA, "url_opener", url_opener)
    yield
    for stream in streams:
        with contextlib.suppress(OSError):  # of a command whose output was not read to the end
            stream.close()
