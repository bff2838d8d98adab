"""Checkpoints as people have them are read, or refused in clear words, and never run code."""

from __future__ import annotations

import argparse
import ast
import datetime
import functools
import gc
import io
import json
import os
import pathlib
import pickle
import subprocess
import tarfile
import warnings
import zipfile
from collections import Counter, OrderedDict, defaultdict, deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file

from datacomp_flyt.errors import InputError
from datacomp_flyt.files.checkpoint_file import read_checkpoint, read_content
from tests.conftest import refusal

ROOT = Path(__file__).parents[2]
WEIGHT, BIAS = torch.arange(12.0).reshape(3, 4), torch.tensor([0.5, -1.0, 2.0])
STATE = {"layer.weight": WEIGHT, "bias": BIAS}


def prefixed(prefix: str) -> dict[str, Any]:
    return {f"{prefix}{name}": value for name, value in STATE.items()}


def read(path: Path) -> dict[str, Any]:
    return read_checkpoint(path, f"--checkpoint {path}").tensors


def refused(path: Path) -> str:
    message = refusal(read_checkpoint, path, f"--checkpoint {path}")
    assert message.startswith(f"--checkpoint {path} cannot be read: ")
    assert "\n" not in message
    return message


def is_state(tensors: dict[str, Any]) -> bool:
    return tensors.keys() == STATE.keys() and all(
        np.array_equal(tensors[name], STATE[name].numpy()) for name in STATE
    )


# ------------------------------------------------------------------------------ wrapped names

WRAPPED: dict[str, Any] = {
    "bare": STATE,
    "compiled": prefixed("_orig_mod."),
    "ddp": prefixed("module."),
    "ddp of compiled": prefixed("module._orig_mod."),
    "compiled ddp": prefixed("_orig_mod.module."),
    "twice": prefixed("module.module."),
    "compiled twice around ddp": prefixed("_orig_mod.module._orig_mod."),
    "fsdp": prefixed("_fsdp_wrapped_module."),
    "lightning": prefixed("model."),
    "lightning of compiled": prefixed("model._orig_mod."),
    "averaged": {**prefixed("module."), "n_averaged": torch.tensor(3)},
    "compiled part": {"layer._orig_mod.weight": WEIGHT, "bias": BIAS},
    "checkpointed part": {"layer._checkpoint_wrapped_module.weight": WEIGHT, "bias": BIAS},
    "part in a compiled whole": {
        "_orig_mod.layer._orig_mod.weight": WEIGHT, "_orig_mod.bias": BIAS,
    },
}  # fmt: skip


@pytest.mark.parametrize("state", WRAPPED.values(), ids=WRAPPED.keys())
@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors", "nested"])
def test_wrappers_leave_the_names(tmp_path: Path, state: dict[str, Any], form: str) -> None:
    path = tmp_path / "c.pt"
    if form == "safetensors":
        save_file({name: value.clone() for name, value in state.items()}, path)
    else:
        content = {"epoch": 3, "state_dict": state} if form == "nested" else state
        torch.save(content, path, _use_new_zipfile_serialization=form != "legacy")
    assert is_state(read(path))


@pytest.mark.parametrize(
    ("state", "named"),
    [
        ({"module.layer.weight": WEIGHT, "bias": BIAS}, "only 1 of its 2 tensors"),
        ({"_orig_mod.layer.weight": WEIGHT, "bias": BIAS}, "_orig_mod."),
        ({**STATE, **prefixed("module.")}, "only 2 of its 4 tensors"),
        ({**STATE, **prefixed("_orig_mod.")}, "_orig_mod."),
        ({**prefixed("module._orig_mod."), **prefixed("module.")}, "_orig_mod."),
        ({"a.b": WEIGHT, "a._orig_mod.b": WEIGHT}, "as if a compiled model and the plain one"),
    ],
)
def test_two_models_in_one_are_refused(tmp_path: Path, state: dict[str, Any], named: str) -> None:
    torch.save(state, tmp_path / "c.pt")
    assert named in refused(tmp_path / "c.pt")


def test_a_name_that_only_looks_wrapped_is_kept(tmp_path: Path) -> None:
    state = {"modules.a": WEIGHT, "layer.module.b": WEIGHT, "models": BIAS, "orig_mod.x": BIAS}
    torch.save(state, tmp_path / "c.pt")
    assert read(tmp_path / "c.pt").keys() == state.keys()


def test_what_torch_itself_wraps(tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    plain = {name: value.numpy() for name, value in net.state_dict().items()}
    averaged = torch.optim.swa_utils.AveragedModel(net)
    part = torch.nn.Sequential(torch.compile(net[0]), net[1])
    wrapped = [torch.nn.DataParallel(net), torch.compile(net), averaged, part]
    wrapped += [torch.compile(wrapped[0]), torch.nn.DataParallel(torch.compile(net))]
    for module in wrapped:
        torch.save({"model": module.state_dict()}, tmp_path / "c.pt")
        found = read(tmp_path / "c.pt")
        assert found.keys() == plain.keys()
        assert all(np.array_equal(found[name], plain[name]) for name in plain)


# ----------------------------------------------------------------------------- where it lies

OTHER = {name: value + 1 for name, value in STATE.items()}
LAYOUTS: dict[str, Any] = {
    "state_dict": {"state_dict": STATE},
    "model": {"model": STATE, "optimizer": {"state": {}, "param_groups": []}},
    "model_state_dict": {"model_state_dict": STATE, "loss": 0.5},
    "deepspeed": {"module": STATE, "ds_version": "0.14", "lr_scheduler": None},
    "model of state_dict": {"model": {"state_dict": STATE}},
    "beside its average": {"model_ema": OTHER, "state_dict": STATE, "ema_state_dict": OTHER},
    "model of settings": {"model": {"name": "ViT"}, "ema": STATE},
    "average alone": {"ema": STATE, "step": 5},
    "ordered": OrderedDict(STATE),
    "default": defaultdict(list, STATE),
    "parameters": {"state_dict": {k: torch.nn.Parameter(v) for k, v in STATE.items()}},
    "with extra state": {**STATE, "extra": {"a": 1}, "n": 3, "none": None, "text": "x"},
    "module": torch.nn.ParameterDict({"layer_weight": WEIGHT}).state_dict()
    | {"state_dict": OrderedDict(STATE)},
}


@pytest.mark.parametrize("content", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_layouts(tmp_path: Path, content: Any, zipped: bool, protocol: int) -> None:
    path = tmp_path / "c.bin"
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    assert is_state(read(path))


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"teacher": STATE, "student": OTHER}, "teacher, student"),
        (WEIGHT, "one tensor"),
        ([WEIGHT], "a list"),
        (argparse.Namespace(a=1), "argparse.Namespace"),
        ({}, "no state dict"),
        ({"state_dict": {}}, "no state dict"),
        ({"lr": 1.0}, "no state dict"),
        ("weights", "a str"),
    ],
)
def test_no_state_dict(tmp_path: Path, content: Any, named: str) -> None:
    torch.save(content, tmp_path / "c.pt")
    message = refused(tmp_path / "c.pt")
    assert named in message
    assert "state_dict" in message


# --------------------------------------------------------------------------- objects beside it

DATA: dict[str, Any] = {
    "Namespace": argparse.Namespace(lr=1e-3, path=Path("/x"), sizes=(1, 2), inner={"a": [1]}),
    "SimpleNamespace": SimpleNamespace(a=1),
    "paths": [Path("/a"), pathlib.PurePosixPath("b"), pathlib.PureWindowsPath("c:/d")],
    "NumPy scalars": [np.float64(1), np.float32(2), np.int64(3), np.bool_(True), np.str_("s")],
    "NumPy arrays": [np.arange(3), np.ones((2, 2), "f2"), np.asfortranarray(np.eye(3))],
    "NumPy types": [np.dtype("f4"), np.float32, np.ndarray],
    "torch values": [torch.Size((2, 3)), torch.float16, torch.device("cuda:1"), torch.strided],
    "collections": [defaultdict(int, a=1), Counter("abc"), deque([1, 2]), OrderedDict(a=1)],
    "sets": [{1, 2}, frozenset("ab"), complex(1, 2), bytearray(b"x"), b"y", range(3), slice(1)],
    "times": [datetime.datetime.now(datetime.timezone.utc), datetime.timedelta(3)],
    "keys": {1: "a", (1, 2): "b", None: 0, 2.5: 1, b"b": 2},
    "random state": [torch.get_rng_state(), np.random.RandomState(0).get_state()],
    "itself": (lambda own: own.append(own) or own)([1]),
    "version": torch.__version__,
    "complex tensor": torch.ones(2, dtype=torch.complex64),
    "meta tensor": torch.empty(3, device="meta"),
    "large numbers": [2**70, -(2**40), 1e300, float("nan")],
}  # fmt: skip


@pytest.mark.parametrize("value", DATA.values(), ids=DATA.keys())
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 5])
def test_data_beside_the_tensors(tmp_path: Path, value: Any, zipped: bool, protocol: int) -> None:
    path = tmp_path / "epoch_1.pt"
    content = {"epoch": 1, "args": value, "state_dict": STATE, "again": value}
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    assert is_state(read(path))


class TrainConfig:
    """A class that a user's training script defines."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __setstate__(self, state: dict[str, Path]) -> None:
        state["mark"].touch()


class Evil:
    """An object that calls a function when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def run(mark: Path) -> dict[str, tuple[Any, str]]:
    """Objects whose unpickling would create `mark`, and the name in the refusal of each."""
    shell, code = f"touch {mark}", f"open({str(mark)!r}, 'w')"
    return {
        "class": (TrainConfig(mark), "TrainConfig"),
        "os.system": (Evil(os.system, shell), f"{os.system.__module__}.system"),
        "eval": (Evil(eval, code), "builtins.eval"),
        "exec": (Evil(exec, code), "builtins.exec"),
        "open": (Evil(open, str(mark), "w"), "io.open"),
        "getattr": (Evil(getattr, Evil(Path, str(mark)), "touch"), "builtins.getattr"),
        "partial": (functools.partial(os.system, shell), "functools.partial"),
        "Popen": (Evil(subprocess.Popen, ["touch", str(mark)]), "subprocess.Popen"),
        "method": (Path(mark).touch, "builtins.getattr"),
        "torch.load": (Evil(torch.load, str(mark)), "torch.serialization.load"),
        "function": (torch.nn.functional.gelu, "gelu"),
        "nested pickle": (Evil(pickle.loads, pickle.dumps(Evil(open, str(mark), "w"))), "loads"),
        "optimizer": (torch.optim.SGD([torch.nn.Parameter(BIAS)], 0.1), "torch.optim"),
        "whole model": (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
    }


@pytest.mark.parametrize("name", run(Path("x")).keys())
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
def test_code_is_named_and_not_run(tmp_path: Path, name: str, zipped: bool, protocol: int) -> None:
    mark, path = tmp_path / "ran", tmp_path / "c.pt"
    value, named = run(mark)[name]
    content = {"args": value, "state_dict": STATE}
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    for message in (refused(path), refusal(read_content, path, "--targets")):
        assert named in message
        assert "torch.save(model.state_dict()" in message
    assert not mark.exists()


def test_the_code_would_have_run(tmp_path: Path) -> None:
    for number, name in enumerate(("class", "os.system", "eval", "open", "nested pickle")):
        mark = tmp_path / str(number)
        torch.save(run(mark)[name][0], tmp_path / "c.pt")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.load(tmp_path / "c.pt", weights_only=False)
            gc.collect()  # of files that were opened
        assert mark.exists(), name


def torchscript(path: Path) -> None:
    class Net(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    torch.jit.save(torch.jit.trace(Net(), torch.ones(1)), path)


def test_torchscript_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.warns() if torch.__version__ >= "2.9" else _nothing():
        torchscript(tmp_path / "ViT-B-32.pt")
    monkeypatch.setattr(torch.jit, "load", None)
    message = refused(tmp_path / "ViT-B-32.pt")
    assert "TorchScript" in message
    assert "openai" in message
    assert "state_dict()" in message


class _nothing:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


# ---------------------------------------------------------------------------- tensors of kinds


@pytest.mark.parametrize("zipped", [True, False])
def test_each_type_of_numbers(tmp_path: Path, zipped: bool) -> None:
    values = torch.tensor([0.0, 1.5, -2.0, 100.0])
    kinds = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8"]
    state = {kind: values.to(getattr(torch, kind)) for kind in kinds}
    state |= {"uint8": values.abs().to(torch.uint8), "bool": values.bool()}
    state |= {"scalar": torch.tensor(2.5, dtype=torch.bfloat16), "none": torch.ones(0, 3)}
    torch.save(state, tmp_path / "c.pt", _use_new_zipfile_serialization=zipped)
    save_file(state, tmp_path / "c.safetensors")
    for found in (read(tmp_path / "c.pt"), read(tmp_path / "c.safetensors")):
        assert found.keys() == state.keys()
        for name, tensor in state.items():
            expected = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
            assert found[name].dtype == expected.numpy().dtype
            assert found[name].shape == tuple(tensor.shape)
            assert np.array_equal(found[name], expected.numpy())
            found[name][...] = 0  # torch.from_numpy takes only what may be written to


@pytest.mark.parametrize("zipped", [True, False])
def test_views_and_shared_storages(tmp_path: Path, zipped: bool) -> None:
    flat = torch.arange(24.0)
    state = {
        "first": flat[:6].view(2, 3), "second": flat[6:], "transposed": flat.view(4, 6).t(),
        "every": flat[1::3], "tied": flat, "again": flat, "other": torch.ones(2),
        "fourth": flat.view(2, 3, 4).permute(2, 0, 1),
    }  # fmt: skip
    torch.save(state, tmp_path / "c.pt", _use_new_zipfile_serialization=zipped)
    found = read(tmp_path / "c.pt")
    assert all(np.array_equal(found[name], state[name].numpy()) for name in state)
    assert all(array.flags.c_contiguous for array in found.values())


class Marked(torch.Tensor):
    """A tensor subclass."""


def no_plain_tensors() -> dict[str, tuple[Any, str]]:
    kinds = {
        "complex": (torch.ones(2, dtype=torch.complex64), "complex64"),
        "meta": (torch.empty(2, device="meta"), "meta"),
        "expanded": (torch.ones(1).expand(10**6, 10**6), "contiguous"),
        "sparse": (torch.sparse_coo_tensor([[0]], [1.0], (5,), check_invariants=True), "sparse"),
        "subclass": (torch.ones(2).as_subclass(Marked), "Marked"),
        "conjugated": (torch.ones(2, dtype=torch.complex64).conj(), "conj"),
    }
    if hasattr(torch, "float8_e4m3fn"):
        kinds["float8"] = (torch.ones(2).to(torch.float8_e4m3fn), "float8_e4m3fn")
    if hasattr(torch, "bits8"):
        kinds["bits"] = (torch.ones(2, dtype=torch.uint8).view(torch.bits8), "bits8")
    if hasattr(torch, "uint16"):
        kinds["uint16"] = (torch.ones(2).to(torch.int32).to(torch.uint16), "uint16")
    return kinds


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", no_plain_tensors().keys())
@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_that_are_not_read(tmp_path: Path, name: str, zipped: bool) -> None:
    tensor, named = no_plain_tensors()[name]
    content = {"state_dict": {"a": WEIGHT, "b": tensor}}
    try:
        torch.save(content, tmp_path / "c.pt", _use_new_zipfile_serialization=zipped)
    except Exception as error:
        pytest.skip(f"torch does not save it ({error})")
    assert named in refused(tmp_path / "c.pt")


@pytest.mark.filterwarnings("ignore")
def test_quantised_tensors(tmp_path: Path) -> None:
    quantised = torch.quantize_per_tensor(WEIGHT, 0.1, 3, torch.quint8)
    torch.save({"w": quantised, "scale": BIAS}, tmp_path / "c.pt")
    assert "its w is quantised" in refused(tmp_path / "c.pt")


# --------------------------------------------------------------------------- files of other kinds


def whole(path: Path) -> bytes:
    torch.save({"state_dict": STATE}, path)
    return path.read_bytes()


def zip_of(names: list[str]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return content.getvalue()


def tar_of() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("model.pt"))
    return content.getvalue()


def npy() -> bytes:
    content = io.BytesIO()
    np.save(content, np.eye(2))
    return content.getvalue()


INDEX = json.dumps({"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}})
FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "login page": (b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>", "web page"),
    "login page in capitals": (b"<HTML><HEAD>", "web page"),
    "error of a bucket": (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "web page"),
    "gzip": (b"\x1f\x8b\x08\x00" + b"0" * 40, "compressed"),
    "zstandard": (b"\x28\xb5\x2f\xfd" + b"0" * 40, "compressed"),
    "tar": (tar_of(), "tar archive"),
    "zip of others": (zip_of(["word/document.xml"]), "word/document.xml"),
    "zip of nothing": (zip_of([]), "nothing"),
    "npy": (npy(), "NumPy array"),
    "index": (INDEX.encode(), "2 shards"),
    "config": (b'{"embed_dim": 512}', "JSON"),
    "text": (b"see https://example.org for the weights\n", "neither"),
    "noise": (bytes(range(7, 200)), "neither"),
    "pickle": (pickle.dumps({"a": [1, 2]}), "not of torch.save"),
    "pickle of tensors": (pickle.dumps(STATE), "torch.save"),
    "pickle of arrays": (pickle.dumps({"a": np.ones(2)}), "torch.save"),
}


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize(("content", "named"), FILES.values(), ids=FILES.keys())
def test_files_of_other_kinds(tmp_path: Path, name: str, content: bytes, named: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert named in refused(path)


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_a_file_is_what_it_holds_whatever_its_name(tmp_path: Path, form: str) -> None:
    for suffix in (".pt", ".bin", ".safetensors", ".ckpt", ".pth", ""):
        path = tmp_path / f"model{suffix}"
        if form == "safetensors":
            save_file(STATE, path)
        else:
            torch.save(STATE, path, _use_new_zipfile_serialization=form == "zip")
        assert is_state(read(path))


def test_safetensors_with_headers_of_any_length(tmp_path: Path) -> None:
    """The header's length may make the first byte that of a pickle or a zip file."""
    first = set()
    for length in range(0, 256, 4):
        save_arrays({"w": np.ones(3, "f4")}, tmp_path / "m.pt", {"note": "x" * length})
        first.add((tmp_path / "m.pt").read_bytes()[0])
        assert read_checkpoint(tmp_path / "m.pt", "m").metadata == {"note": "x" * length}
    assert {0x80, ord("P")} <= first


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_files_that_are_cut_short(tmp_path: Path, form: str, share: float) -> None:
    path = tmp_path / "c.pt"
    if form == "safetensors":
        save_file(STATE, path)
    else:
        torch.save(STATE, path, _use_new_zipfile_serialization=form == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refused(path)


def test_folders_pipes_and_links(tmp_path: Path) -> None:
    sharded = tmp_path / "dcp"
    sharded.mkdir()
    (sharded / ".metadata").write_bytes(b"x")
    (sharded / "__0_0.distcp").write_bytes(b"x")
    assert "it is a folder of torch.distributed" in refused(sharded)
    assert "dcp_to_torch" in refused(sharded / "__0_0.distcp")
    hub = tmp_path / "hub"
    hub.mkdir()
    assert "name the checkpoint inside" in refused(hub)
    torch.save(STATE, hub / "open_clip_pytorch_model.bin")
    assert "open_clip_pytorch_model.bin" in refused(hub)
    (tmp_path / "link.pt").symlink_to(hub / "open_clip_pytorch_model.bin")
    assert is_state(read(tmp_path / "link.pt"))
    os.mkfifo(tmp_path / "pipe.pt")
    assert "no regular file" in refused(tmp_path / "pipe.pt")
    (tmp_path / "gone.pt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="No such file"):
        read(tmp_path / "gone.pt")


def test_one_of_several_shards(tmp_path: Path) -> None:
    for name in ("model-00001-of-00003.safetensors", "pytorch_model-00002-of-00003.bin"):
        save_file(STATE, tmp_path / name)
        assert "in 3 shards" in refused(tmp_path / name)
    save_file(STATE, tmp_path / "model-00001-of-00001.safetensors")
    assert is_state(read(tmp_path / "model-00001-of-00001.safetensors"))


def test_a_distributed_tensor(tmp_path: Path) -> None:
    tensor = pytest.importorskip("torch.distributed.tensor")
    if not hasattr(torch.distributed, "init_device_mesh"):
        pytest.skip("torch without device meshes: not built with them, or before 2.4")
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        mesh = torch.distributed.init_device_mesh("cpu", (1,))
        spread = tensor.distribute_tensor(WEIGHT, mesh, [tensor.Shard(0)])
        torch.save({"w": spread}, tmp_path / "c.pt")
    finally:
        torch.distributed.destroy_process_group()
    message = refused(tmp_path / "c.pt")
    assert "torch.distributed" in message
    assert "full_state_dict=True" in message


# ------------------------------------------------------------------- numbers of many tensors


def test_a_bomb_of_views(tmp_path: Path) -> None:
    storage = torch.ones(50_000)
    state = {f"t{number}": storage[: 50_000 - number] for number in range(400)}
    torch.save(state, tmp_path / "c.pt")
    assert "over and over" in refused(tmp_path / "c.pt")


def test_tied_weights(tmp_path: Path) -> None:
    torch.save({f"layers.{number}": WEIGHT for number in range(100)}, tmp_path / "c.pt")
    found = read(tmp_path / "c.pt")
    assert len(found) == 100
    assert all(np.array_equal(array, WEIGHT.numpy()) for array in found.values())


def test_a_bomb_of_lists(tmp_path: Path) -> None:
    value: Any = [1]
    for _ in range(60):
        value = [value, value]
    torch.save({"state_dict": STATE, "args": value}, tmp_path / "c.pt")
    assert is_state(read(tmp_path / "c.pt"))
    found = read_content(tmp_path / "c.pt", "c")["args"]
    assert found[0] is found[1]


def test_content_as_tensors(tmp_path: Path) -> None:
    saved = {"step": 3, "betas": (0.9, 0.98), "state": [{"w": WEIGHT}, None, True], "x": BIAS}
    torch.save(saved, tmp_path / "c.pt")
    found = read_content(tmp_path / "c.pt", "c", torch.from_numpy)
    assert torch.equal(found["state"][0].pop("w"), WEIGHT)
    assert torch.equal(found.pop("x"), BIAS)
    assert found == {"step": 3, "betas": (0.9, 0.98), "state": [{}, None, True]}


def test_nothing_unpickles() -> None:
    """No other reader, which would run a file's code, is used."""
    forbidden = {("torch", "load"), ("jit", "load"), ("pickle", "load"), ("pickle", "loads")}
    files = sorted(ROOT.glob("datacomp_flyt/**/*.py")) + sorted(ROOT.glob("baselines_plugin/*.py"))
    assert files
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                owner = node.value
                named = getattr(owner, "id", getattr(owner, "attr", None))
                assert (named, node.attr) not in forbidden, f"{path}:{node.lineno}"
