"""Writes valid and malicious files in the layout of `torch.save`, without torch."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

KINDS = {"<f8": "Double", "<f4": "Float", "<f2": "Half", "<i8": "Long", "<i4": "Int"}
PROTOCOL, STOP = b"\x80\x02", b"."


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def sequence(values: Sequence[int]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(key: str, kind: str = "Float", length: int = 12) -> bytes:
    return (
        b"(" + text("storage") + f"ctorch\n{kind}Storage\n".encode() + text(key) + text("cpu")
        + number(length) + b"tQ"
    )  # fmt: skip


def tensor(
    key: str,
    shape: Sequence[int],
    strides: Sequence[int],
    offset: int = 0,
    kind: str = "Float",
    function: str = "torch._utils\n_rebuild_tensor_v2",
) -> bytes:
    return (
        f"c{function}\n(".encode() + storage(key, kind) + number(offset) + sequence(shape)
        + sequence(strides) + b"\x89ccollections\nOrderedDict\n)RtR"
    )  # fmt: skip


def state_dict(tensors: Mapping[str, bytes]) -> bytes:
    """Return opcodes that leave an ordered dict of the tensors on the stack."""
    items = b"".join(text(name) + value for name, value in tensors.items())
    return b"ccollections\nOrderedDict\n)R(" + items + b"u"


def zip_file(path: Path, program: bytes, storages: Mapping[str, np.ndarray | bytes]) -> Path:
    """Write an archive whose data.pkl is `program` between protocol 2 and STOP."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("model/data.pkl", PROTOCOL + program + STOP)
        archive.writestr("model/byteorder", "little")
        for key, values in storages.items():
            raw = values if isinstance(values, bytes) else values.tobytes()
            archive.writestr(f"model/data/{key}", raw)
        archive.writestr("model/version", "3\n")
    path.write_bytes(content.getvalue())
    return path


def mflyt_file(path: Path, weight: np.ndarray, bias: np.ndarray, nested: bool = False) -> Path:
    """Write the published layout with the dtype of the arrays."""
    kind = KINDS[weight.dtype.str]
    program = state_dict(
        {
            "layers.0.weight": tensor("0", weight.shape, (weight.shape[-1], 1), kind=kind),
            "layers.0.bias": tensor("1", bias.shape, (1,), kind=kind),
        }
    )
    if nested:
        program = b"}(" + text("epoch") + number(3) + text("state_dict") + program + b"u"
    return zip_file(path, program, {"0": weight, "1": bias})
