"""Checkpoints of a hooked script can be read with NumPy 1 and with an older Python."""

from __future__ import annotations

import collections
import pathlib
import pickle
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")

from datacomp_flyt.open_clip_hook.portable_checkpoints import (
    portable_checkpoints,
    without_numpy_scalars,
)


class Pair(NamedTuple):
    first: Any
    second: Any


def ordered(**items: Any) -> collections.OrderedDict[str, Any]:
    return collections.OrderedDict(items)


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        ({"lr": np.float64(0.1)}, {"lr": 0.1}),
        ({"groups": [{"lr": np.float32(0.5), "betas": (0.9, np.float64(0.98))}]},
         {"groups": [{"lr": 0.5, "betas": (0.9, 0.98)}]}),
        ({np.int64(3): np.int64(4)}, {3: 4}),
        ([np.bool_(True), np.str_("a"), np.bytes_(b"b")], [True, "a", b"b"]),
        (Pair(np.float16(1), [np.uint8(2)]), Pair(1.0, [2])),
        (ordered(epoch=np.int32(2)), ordered(epoch=2)),
        ({"nested": {"deep": {"deeper": ((np.float64(1),),)}}},
         {"nested": {"deep": {"deeper": ((1.0,),)}}}),
    ],
)  # fmt: skip
def test_scalars_become_python_numbers(value: Any, plain: Any) -> None:
    converted = without_numpy_scalars(value)
    assert converted == plain
    assert type(converted) is type(plain)
    assert "numpy" not in str(pickle.dumps(converted))


@pytest.mark.parametrize(
    "value",
    [{"a": 1, "b": [None, "c", (1.0, 2)]}, ordered(w=3), [], (), {"array": np.zeros(2)}, "text"],
)
def test_a_value_without_scalars_is_the_same_object(value: Any) -> None:
    assert without_numpy_scalars(value) is value


def test_a_state_dict_keeps_its_metadata() -> None:
    state = torch.nn.BatchNorm1d(3).state_dict()
    converted = without_numpy_scalars({"state_dict": state, "epoch": np.int64(1)})
    assert converted["state_dict"] is state
    assert converted["state_dict"]._metadata[""]["version"] == 2


@pytest.mark.parametrize("way", ["to a name", "to a file", "to a path, by keyword"])
def test_torch_save(way: str, tmp_path: Path) -> None:
    content = {"optimizer": {"param_groups": [{"lr": np.float64(0.25)}]}, "w": torch.ones(2)}
    path, stock = tmp_path / "checkpoint.pt", torch.save
    with portable_checkpoints():
        if way == "to a name":
            torch.save(content, str(path))
        elif way == "to a file":
            with path.open("wb") as file:
                torch.save(content, file)
        else:
            torch.save(obj=content, f=path)
    assert torch.save is stock
    assert isinstance(content["optimizer"]["param_groups"][0]["lr"], np.float64)
    with zipfile.ZipFile(path) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("data.pkl"))
        assert b"numpy" not in archive.read(name)
    assert torch.load(path, weights_only=False)["optimizer"]["param_groups"][0]["lr"] == 0.25


@pytest.mark.parametrize("path", [Path("/a/b"), pathlib.PurePosixPath("c"), Path("."), Path("é")])
def test_paths_are_pickled_as_by_older_pythons(path: pathlib.PurePath) -> None:
    """Python 3.13 pickles paths as `pathlib._local`, which other versions do not have."""
    module = type(path).__module__
    with portable_checkpoints():
        content = pickle.dumps({"checkpoint": path})
    assert b"pathlib._local" not in content
    assert pickle.loads(content)["checkpoint"] == path
    assert type(path).__module__ == module


def test_everything_is_restored_after_an_error() -> None:
    stock, module = torch.save, Path.__module__
    with pytest.raises(ZeroDivisionError), portable_checkpoints():
        _ = 1 / 0
    assert (torch.save, Path.__module__) == (stock, module)
