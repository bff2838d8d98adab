"""Files of `torch.save` by other programs or older releases, or packed again."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from datacomp_flyt.files.checkpoint_file import read_checkpoint
from tests.conftest import refusal
from tests.files.torch_zip import state_dict, tensor, zip_file

ROW = torch.arange(3.0)
STATE = {"weight": torch.arange(12.0).reshape(3, 4), "bias": ROW}


def read(path: Path) -> dict[str, Any]:
    return read_checkpoint(path, "c").tensors


STRIDED = {
    "expanded rows": ROW.expand(5, 3),
    "expanded columns": ROW[:, None].expand(3, 4),
    "an expanded number": torch.tensor(2.5).expand(1000),
    "expanded bfloat16": ROW.bfloat16().expand(7, 3),
    "expanded and cut": ROW.expand(5, 3)[1:, 1:],
    "overlapping windows": torch.arange(9.0).unfold(0, 3, 1),
    "no rows": torch.zeros(0, 5),
    "no columns": torch.zeros(5, 0),
    "none in the middle": torch.zeros(4, 0, 3),
    "none at the end of another": ROW[3:],
}


@pytest.mark.parametrize("value", STRIDED.values(), ids=STRIDED.keys())
@pytest.mark.parametrize("zipped", [True, False])
def test_strides_of_torch(tmp_path: Path, value: Any, zipped: bool) -> None:
    """A tensor may have more numbers than its storage, or none with any strides."""
    torch.save({"x": value}, tmp_path / "c.pt", _use_new_zipfile_serialization=zipped)
    np.testing.assert_array_equal(read(tmp_path / "c.pt")["x"], value.float().numpy(), strict=True)


BOMBS = {
    "one expanded number": {"a": tensor("0", (1 << 15, 1 << 15), (0, 0))},
    "one long row": {"a": tensor("0", (1 << 40, 12), (0, 1))},
    "many": {f"t{n}": tensor("0", (1 << 20, 1), (0, 1), n % 12) for n in range(12)},
}


@pytest.mark.parametrize("tensors", BOMBS.values(), ids=BOMBS.keys())
def test_expanded_bombs(tmp_path: Path, tensors: dict[str, bytes]) -> None:
    path = zip_file(tmp_path / "c.pt", state_dict(tensors), {"0": np.arange(12, dtype="<f4")})
    assert ".contiguous()" in refusal(read, path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_protocols(tmp_path: Path, protocol: int, zipped: bool) -> None:
    path = tmp_path / "c.pt"
    torch.save(STATE, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    if protocol == 0:  # whose storages torch itself does not find
        assert "pickle_protocol=0" in refusal(read, path)
    else:
        assert read(path).keys() == STATE.keys()


@pytest.mark.parametrize(
    "prefix",
    [
        "_forward_module.",
        "_forward_module.module.",
        "module._forward_module.model.",
        "_checkpoint_wrapped_module.",
        "_fsdp_wrapped_module._checkpoint_wrapped_module.",
        "_orig_mod._fsdp_wrapped_module.model.",
    ],
)
def test_wrappers_of_other_trainers(tmp_path: Path, prefix: str) -> None:
    torch.save({f"{prefix}{name}": value for name, value in STATE.items()}, tmp_path / "c.pt")
    assert read(tmp_path / "c.pt").keys() == STATE.keys()


def packed(path: Path, change: Callable[[str, bytes], list[tuple[str, bytes]]], kind: int) -> Path:
    """Change the members of an archive and pack it with another program."""
    torch.save(STATE, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, content in members.items():
            for new, value in change(name, content):
                with archive.open(new, "w", force_zip64=True) as member:
                    member.write(value)
    return path


AGAIN: dict[str, tuple[Callable[[str, bytes], list[tuple[str, bytes]]], int, str]] = {
    "zip64": (lambda name, value: [(name, value)], zipfile.ZIP_STORED, ""),
    "in another folder": (lambda name, value: [(f"a/b/{name}", value)], zipfile.ZIP_STORED, ""),
    "outside of its folder": (lambda name, value: [(f"../{name}", value)], zipfile.ZIP_STORED, ""),
    "compressed": (lambda name, value: [(name, value)], zipfile.ZIP_DEFLATED, "is compressed"),
    "of another byte order": (
        lambda name, value: [(name, b"big" if name.endswith("byteorder") else value)],
        zipfile.ZIP_STORED, "not little-endian",
    ),
    "two in one": (
        lambda name, value: [(name, value), (f"copy/{name}", value)],
        zipfile.ZIP_STORED, "2 data.pkl",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "kind", "said"), AGAIN.values(), ids=AGAIN.keys())
def test_packed_again(
    tmp_path: Path, change: Callable[[str, bytes], list[tuple[str, bytes]]], kind: int, said: str
) -> None:
    path = packed(tmp_path / "c.pt", change, kind)
    if said:
        assert said in refusal(read, path)
    else:
        assert read(path).keys() == STATE.keys()


def test_encrypted(tmp_path: Path) -> None:
    path = packed(tmp_path / "c.pt", lambda name, value: [(name, value)], zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    place = -1
    while (place := content.find(b"PK\x01\x02", place + 1)) >= 0:
        content[place + 8] |= 1
    path.write_bytes(content)
    assert "is encrypted" in refusal(read, path)
