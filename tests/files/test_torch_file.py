"""The published `mflyt.pt` is read without torch, and files that would run code are refused."""

from __future__ import annotations

import contextlib
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datacomp_flyt.files.torch_file import read_torch_file
from datacomp_flyt.files.torch_pickle import TorchFileError
from datacomp_flyt.mixing import load_mixing_model
from tests.conftest import PUBLISHED, refusal
from tests.files import torch_zip
from tests.files.torch_zip import mflyt_file, number, state_dict, storage, tensor, text, zip_file

# made by torch.save of torch 2.13.0
REAL_FILE = Path(__file__).parent / "data" / "mflyt_layout.pt"
REAL_WEIGHTS = (0.25, -1.5, 3.0, 0.125, -0.0625, 7.5, 1e-3, -2.25, 0.1, 0.2, 0.3, -4.75)
REAL_BIAS = 0.75
WEIGHT = np.array([REAL_WEIGHTS], np.float32)
BIAS = np.array([REAL_BIAS], np.float32)


# ---------------------------------------------------------------------------- good files


def test_a_file_that_torch_wrote() -> None:
    tensors = read_torch_file(REAL_FILE)
    assert list(tensors) == ["layers.0.weight", "layers.0.bias"]
    assert tensors["layers.0.weight"].dtype == np.float32
    assert np.array_equal(tensors["layers.0.weight"], WEIGHT)
    assert np.array_equal(tensors["layers.0.bias"], BIAS)
    model = load_mixing_model(str(REAL_FILE))
    assert model.columns == PUBLISHED
    assert model.weights == tuple(WEIGHT[0].tolist())
    assert (model.bias, model.standardize, model.means, model.stds) == (0.75, True, None, None)


@pytest.mark.parametrize("dtype", ["<f8", "<f4", "<f2"])
@pytest.mark.parametrize("nested", [False, True])
def test_every_float_dtype_raw_and_nested(tmp_path: Path, dtype: str, nested: bool) -> None:
    weight, bias = WEIGHT.astype(dtype), BIAS.astype(dtype)
    model = load_mixing_model(str(mflyt_file(tmp_path / "m.pt", weight, bias, nested)))
    assert model.weights == tuple(weight[0].tolist())
    assert model.bias == bias[0]


@pytest.mark.parametrize("dtype", ["<i8", "<i4"])
def test_integer_tensors_among_others(tmp_path: Path, dtype: str) -> None:
    values = np.array([3, -1, 2**31 - 1], dtype)
    program = state_dict({"steps": tensor("0", (3,), (1,), kind=torch_zip.KINDS[dtype])})
    (found,) = read_torch_file(zip_file(tmp_path / "m.pt", program, {"0": values})).values()
    assert found.dtype == dtype
    assert np.array_equal(found, values)


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [
        ((3, 4), (4, 1), 0),
        ((4, 3), (1, 4), 0),
        ((2, 2), (6, 2), 3),
        ((), (), 11),
        ((0, 5), (5, 1), 0),
    ],
)
def test_views_offsets_and_strides(
    tmp_path: Path, shape: tuple[int, ...], strides: tuple[int, ...], offset: int
) -> None:
    values = np.arange(12, dtype=np.float32)
    path = zip_file(
        tmp_path / "m.pt", state_dict({"a": tensor("0", shape, strides, offset)}), {"0": values}
    )
    found = read_torch_file(path)["a"]
    assert found.shape == shape
    for place in np.ndindex(*shape):
        at = offset + sum(i * stride for i, stride in zip(place, strides, strict=True))
        assert found[place] == values[at]


def _raw(torch: Any, weight: Any, bias: Any) -> Any:
    return OrderedDict([("layers.0.weight", weight), ("layers.0.bias", bias)])


def _nested(torch: Any, weight: Any, bias: Any) -> Any:
    return {"epoch": 1, "lr": 0.5, "name": "x", "state_dict": _raw(torch, weight, bias)}


def _float64(torch: Any, weight: Any, bias: Any) -> Any:
    return _raw(torch, weight.double(), bias.double())


def _transposed(torch: Any, weight: Any, bias: Any) -> Any:
    padded = torch.cat([torch.full((1, 12), 9.0), weight]).t().contiguous()  # [12, 2]
    return _raw(torch, padded.t()[1:], bias)


def _module(torch: Any, weight: Any, bias: Any) -> Any:
    module = torch.nn.Sequential(OrderedDict(layers=torch.nn.Sequential(torch.nn.Linear(12, 1))))
    module.load_state_dict(_raw(torch, weight, bias))
    return module.state_dict()


@pytest.mark.parametrize("layout", [_raw, _nested, _float64, _transposed, _module])
def test_what_torch_saves_where_there_is_torch(
    tmp_path: Path, layout: Callable[[Any, Any, Any], Any]
) -> None:
    torch = pytest.importorskip("torch")
    saved = layout(torch, torch.tensor([REAL_WEIGHTS]), torch.tensor([REAL_BIAS]))
    torch.save(saved, tmp_path / "m.pt")
    model = load_mixing_model(str(tmp_path / "m.pt"))
    assert model.weights == tuple(WEIGHT[0].tolist())
    assert model.bias == REAL_BIAS


# ------------------------------------------------------------------ weights of other kinds


@pytest.mark.parametrize("shape", [(1, 11), (1, 13), (12, 1), (12,), (2, 12)])
def test_weights_of_another_shape(tmp_path: Path, shape: tuple[int, ...]) -> None:
    weight = np.ones(shape, np.float32)
    path = mflyt_file(tmp_path / "m.pt", weight, BIAS) if len(shape) == 2 else tmp_path / "m.pt"
    if len(shape) == 1:
        tensors = {
            "layers.0.weight": tensor("0", shape, (1,)),
            "layers.0.bias": tensor("1", (1,), (1,)),
        }
        zip_file(path, state_dict(tensors), {"0": weight, "1": BIAS})
    message = refusal(load_mixing_model, str(path))
    assert f"layers.0.weight {list(shape)}" in message
    assert "wanted layers.0.weight [1, 12]" in message


@pytest.mark.parametrize("name", ["layers.0.weight", "layers.0.bias"])
def test_a_tensor_that_is_not_there(tmp_path: Path, name: str) -> None:
    path = zip_file(
        tmp_path / "m.pt", state_dict({name: tensor("0", (1, 12), (12, 1))}), {"0": WEIGHT}
    )
    assert "wanted layers.0.weight" in refusal(load_mixing_model, str(path))


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
@pytest.mark.parametrize("which", ["weight", "bias"])
def test_weights_that_are_not_finite(tmp_path: Path, wrong: float, which: str) -> None:
    weight, bias = WEIGHT.copy(), BIAS.copy()
    {"weight": weight, "bias": bias}[which].flat[-1] = wrong
    path = mflyt_file(tmp_path / "m.pt", weight, bias)
    assert "not finite" in refusal(load_mixing_model, str(path))


# ------------------------------------------------------------------------------ evil files


class Touch:
    """An object that creates a file when `pickle` unpickles it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.path}",))


def pickled(protocol: int) -> Callable[[Path], bytes]:
    def program(mark: Path) -> bytes:
        return pickle.dumps({"layers.0.weight": Touch(mark)}, protocol)[:-1]

    return program


def shell(mark: Path) -> bytes:
    return text(f"touch {mark}")


EVIL: dict[str, Callable[[Path], bytes]] = {
    **{f"pickled with protocol {number}": pickled(number) for number in range(6)},
    "GLOBAL and REDUCE": lambda mark: b"cos\nsystem\n(" + shell(mark) + b"tR",
    "STACK_GLOBAL": lambda mark: text("os") + text("system") + b"\x93(" + shell(mark) + b"tR",
    "INST": lambda mark: b"(" + shell(mark) + b"ios\nsystem\n",
    "OBJ": lambda mark: b"(cos\nsystem\n" + shell(mark) + b"o",
    "NEWOBJ": lambda mark: b"csubprocess\nPopen\n(" + shell(mark) + b"t\x81",
    "EXT1": lambda mark: b"\x82\x01(" + shell(mark) + b"tR",
    "BUILD of a REDUCE": lambda mark: b"cos\nsystem\n(" + shell(mark) + b"tR}b",
    "eval": lambda mark: b"cbuiltins\neval\n(" + text(f"open({str(mark)!r}, 'w')") + b"tR",
    "OrderedDict of a call": lambda mark: (
        b"ccollections\nOrderedDict\n(cos\nsystem\n(" + shell(mark) + b"tRtR"
    ),
    "another rebuild function": lambda mark: state_dict(
        {"a": tensor("0", (12,), (1,), function="os\nsystem")}
    ),
    "rebuild function of another module": lambda mark: state_dict(
        {"a": tensor("0", (12,), (1,), function="evil\n_rebuild_tensor_v2")}
    ),
}


@pytest.mark.parametrize("program", EVIL.values(), ids=EVIL.keys())
def test_nothing_is_executed(tmp_path: Path, program: Callable[[Path], bytes]) -> None:
    mark = tmp_path / "executed"
    path = zip_file(tmp_path / "m.pt", program(mark), {"0": WEIGHT})
    with pytest.raises(TorchFileError):
        read_torch_file(path)
    assert str(path) in refusal(load_mixing_model, str(path))
    assert not mark.exists()


def test_the_evil_would_have_worked(tmp_path: Path) -> None:
    for name in ("GLOBAL and REDUCE", "STACK_GLOBAL", "INST", "pickled with protocol 4"):
        mark = tmp_path / name.replace(" ", "_")
        # the one place that unpickles: programs written above, to prove that refusing them matters
        pickle.loads(b"\x80\x04" + EVIL[name](mark) + b".")
        assert mark.exists(), name


# --------------------------------------------------------------------------- damaged files


BAD_TENSORS = {
    "too long": tensor("0", (13,), (1,)),
    "too far": tensor("0", (12,), (1,), 1),
    "offset behind the end": tensor("0", (1,), (1,), 12),
    "stride too wide": tensor("0", (2, 6), (7, 1)),
    "negative stride": tensor("0", (12,), (-1,), 11),
    "negative offset": tensor("0", (4,), (1,), -1),
    "negative size": tensor("0", (-4,), (1,)),
    "huge stride": tensor("0", (2,), (2**62,)),
    "stride that wraps around": tensor("0", (2,), (2**64 - 4,)),
    "huge repeated view": tensor("0", (2**40,), (0,)),
    "more strides than sizes": tensor("0", (12,), (1, 1)),
    "missing storage": tensor("7", (12,), (1,)),
    "storage outside its folder": tensor("../version", (1,), (1,)),
    "complex storage": tensor("0", (6,), (1,), kind="ComplexFloat"),
    "unknown storage": tensor("0", (12,), (1,), kind="Evil"),
    "storage of half a number": tensor("odd", (1,), (1,)),
    "persistent id of another kind": text("module") + b"Q",
    "storage named by a string": b"(" + text("storage") + text("f") + text("0") + b"tQ",
    "call of a string": text("f") + b")R",
    "call of a number": number(5) + b")R",
    "rebuild of no storage": b"ctorch._utils\n_rebuild_tensor_v2\n(" + number(1) * 4 + b"tR",
    "rebuild of a bare storage": b"ctorch._utils\n_rebuild_tensor_v2\n" + storage("0") + b"R",
    "sizes that are text": tensor("0", (12,), (1,)).replace(number(12) + b"t", text("12") + b"t"),
    "unhashable key": b"}" + b"}" + number(1) + b"s",
}
# each tuple holds the one before twice: without a guard, hashing the last takes 4 million calls
NESTED_KEY = number(1) + b"\x85" + b"2\x86" * 22
SLOW = {
    "key of a dict": (b"}" + NESTED_KEY + number(1) + b"s", "neither text nor numbers"),
    "key of a dict in a list": (b"](}" + NESTED_KEY + number(1) + b"se", "neither text nor"),
    "key of an ordered dict": (
        b"ccollections\nOrderedDict\n(](" + NESTED_KEY + number(1) + b"\x86etR",
        "neither text nor numbers",
    ),
    "dimensions": (tensor("0", [1] * 9, [0] * 9), "has 9 dimensions"),
}


@pytest.mark.parametrize(("value", "said"), SLOW.values(), ids=SLOW.keys())
def test_a_pickle_that_would_be_slow_to_read(tmp_path: Path, value: bytes, said: str) -> None:
    program = state_dict({"layers.0.weight": tensor("0", (12,), (1,)), "other": value})
    path = zip_file(tmp_path / "m.pt", program, {"0": WEIGHT})
    with pytest.raises(TorchFileError, match=said):
        read_torch_file(path)


@pytest.mark.parametrize("value", BAD_TENSORS.values(), ids=BAD_TENSORS.keys())
def test_a_tensor_that_makes_no_sense(tmp_path: Path, value: bytes) -> None:
    path = zip_file(
        tmp_path / "m.pt", state_dict({"layers.0.weight": value}), {"0": WEIGHT, "odd": b"123"}
    )
    with pytest.raises(TorchFileError):
        read_torch_file(path)


BAD_PROGRAMS = {
    "list": b"]",
    "number": number(3),
    "nothing on the stack": b"",
    "items of no dict": number(1) + b"(" + text("a") + number(1) + b"u",
    "item of no dict": number(1) + text("a") + number(1) + b"s",
    "no mark": b"t",
    "unknown memo": b"h\x07",
    "odd items": b"}(" + text("a") + b"u",
    "unknown opcode": b"\xff",
    "cut opcode": b"X\x10\x00\x00\x00ab",
}


@pytest.mark.parametrize("program", BAD_PROGRAMS.values(), ids=BAD_PROGRAMS.keys())
def test_a_pickle_that_makes_no_sense(tmp_path: Path, program: bytes) -> None:
    with pytest.raises(TorchFileError):
        read_torch_file(zip_file(tmp_path / "m.pt", program, {}))


def test_big_endian_numbers_are_not_misread(tmp_path: Path) -> None:
    """torch stores the byte order of the machine."""
    path = mflyt_file(tmp_path / "m.pt", WEIGHT, BIAS)
    little = path.read_bytes()
    swapped = little.replace(WEIGHT.tobytes(), WEIGHT.byteswap().tobytes())
    path.write_bytes(swapped.replace(b"little", b"big   "))
    with pytest.raises(TorchFileError):
        read_torch_file(path)


def test_a_byte_order_of_gigabytes(tmp_path: Path) -> None:
    """torch does not compress, so a member is no longer than the file."""
    path = tmp_path / "m.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/byteorder", bytes(1 << 20))
    zip_file(tmp_path / "whole.pt", state_dict({}), {})
    with zipfile.ZipFile(path, "a") as archive, zipfile.ZipFile(tmp_path / "whole.pt") as whole:
        archive.writestr("model/data.pkl", whole.read("model/data.pkl"))
    with pytest.raises(TorchFileError, match="byteorder is compressed"):
        read_torch_file(path)


@pytest.mark.parametrize("kept", [0, 1, 30, 300, -200, -22, -1])
def test_a_truncated_file(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(REAL_FILE.read_bytes()[:kept])
    assert str(path) in refusal(load_mixing_model, str(path))


def legacy(path: Path) -> None:
    path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C) + pickle.dumps(1001))


def no_pickle(path: Path) -> None:
    path.write_bytes(zip_file(path, b"", {}).read_bytes().replace(b"data.pkl", b"data.pki"))


def two_pickles(path: Path) -> None:
    program = state_dict({})
    zip_file(path, program, {"x/data.pkl": b"N."})


@pytest.mark.parametrize("make", [legacy, no_pickle, two_pickles])
def test_other_files(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "m.pt")
    assert str(tmp_path / "m.pt") in refusal(load_mixing_model, str(tmp_path / "m.pt"))


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(st.integers(0, 1932), st.integers(0, 255)), min_size=1, max_size=4))
def test_flipped_bytes_give_a_refusal_or_tensors(
    tmp_path: Path, changes: list[tuple[int, int]]
) -> None:
    content = bytearray(REAL_FILE.read_bytes())
    for place, value in changes:
        content[place] = value
    path = tmp_path / "m.pt"
    path.write_bytes(content)
    tensors = {}
    with contextlib.suppress(TorchFileError):
        tensors = read_torch_file(path)
    assert all(isinstance(value, np.ndarray) for value in tensors.values())


def test_only_wanted_tensors_are_read(tmp_path: Path) -> None:
    program = state_dict(
        {
            "a": tensor("0", (12,), (1,)),
            "b": tensor("not there", (5,), (1,)),
            "c": text("no tensor"),
        }
    )
    path = zip_file(tmp_path / "m.pt", program, {"0": WEIGHT})
    found = read_torch_file(path, lambda name: name != "b")
    assert list(found) == ["a"]
    assert np.array_equal(found["a"], WEIGHT[0])
    with pytest.raises(TorchFileError):
        read_torch_file(path)


def test_members_that_are_damaged_or_compressed(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    content = REAL_FILE.read_bytes()
    place = content.index(WEIGHT.tobytes())
    path.write_bytes(content[:place] + b"\1" + content[place + 1 :])
    with pytest.raises(TorchFileError, match=r"Bad CRC-32 for file .*data/0"):
        read_torch_file(path)
    with zipfile.ZipFile(REAL_FILE) as archive, zipfile.ZipFile(path, "w") as other:
        for member in archive.infolist():
            other.writestr(member.filename, archive.read(member), zipfile.ZIP_DEFLATED)
    with pytest.raises(TorchFileError, match="is compressed"):
        read_torch_file(path)
