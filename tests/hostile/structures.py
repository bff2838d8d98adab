"""Damage that knows the format: well-formed files of other content.

Each function takes the valid file's bytes, and returns others and whether they mean the same.
"""

from __future__ import annotations

import functools
import io
import json
import random
import struct
import warnings
import zipfile
import zlib
from typing import Any

import numpy as np

from tests.hostile import mutate

Changed = tuple[bytes, bool]

_ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    1.5,
    10**400,
    2**63,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x" * 100_000,
    "\ud800",
    "a\nb\x1b[31m",
    "<script>",
    [],
    {},
    [1],
    {"a": 1},
    ["b32_img"] * 3,
    "../../x",
]
_DEEP = "@deep@"


def deep(opening: str = "[", depth: int = 100_000) -> str:
    return opening * depth


def change_tree(rng: random.Random, tree: Any) -> Any:
    """Some value of nested JSON becomes another, is left out, or is there twice."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], (dict, list)):
                walk(node[key])

    holder = {"root": tree}
    walk(holder)
    node, key = rng.choice(places)
    choice = rng.randrange(8)
    if choice == 0 and isinstance(node, dict) and node is not holder:
        del node[key]
    elif choice == 1 and isinstance(node, list):
        node.insert(key, node[key])
    elif choice == 2:
        node[key] = _DEEP
    elif choice == 3:
        node[key] = [node[key]]
    elif choice == 4 and isinstance(node[key], (int, float)):
        node[key] = node[key] * rng.choice([-1, 2, 10**6, 10**12]) + rng.choice([0, 1])
    else:
        node[key] = rng.choice(_ODD)
    return holder["root"]


def dumps(tree: Any) -> bytes:
    text = json.dumps(tree).replace(f'"{_DEEP}"', deep() + "]" * 100_000)
    return text.encode()


def json_file(rng: random.Random, content: bytes) -> Changed:
    tree = json.loads(content)
    choice = rng.randrange(12)
    if choice == 0:
        return json.dumps(tree, indent=3).encode() + b"\n\n", True
    if choice == 1:
        return rng.choice([deep(), deep('{"a":'), "[" * 99 + "]" * 99]).encode(), False
    if choice == 2:  # the same key twice
        return content.replace(b"{", b'{"uid": 1, "key": 2, ', 1), False
    if choice == 3:
        return rng.choice([b"\xef\xbb\xbf" + content, content.decode().encode("utf-16")]), False
    if choice == 4:
        return dumps(rng.choice(_ODD)), False
    if choice == 5:
        return b"9" * 5000, False
    return dumps(change_tree(rng, tree)), False


def lines_file(rng: random.Random, content: bytes) -> Changed:
    """Another line among those of JSON."""
    lines = content.splitlines()
    place = rng.choice([place for place, line in enumerate(lines) if line])
    lines[place] = json_file(rng, lines[place])[0]
    return b"\n".join(lines) + b"\n", False


def text_file(rng: random.Random, content: bytes) -> Changed:
    choice = rng.randrange(9)
    lines = content.split(b"\n")[:-1]
    if choice == 0:
        return b"\r\n".join(lines) + b"\r\n\n\n", True
    if choice == 1:
        return b"".join(b"{c} %d\n" % row for row in range(200_000)), False
    if choice == 2:
        return content + b"{c}" * 3_000_000, False
    if choice == 3:
        return rng.choice([b"\xef\xbb\xbf", b"\0", b"\xff"]) + content, False
    odd = rng.choice(
        [
            b"",
            b"  ",
            b"\0",
            b"\x1b[2J {c}",
            "\u2028{c}\u202e".encode(),
            b"{c}\x85",
            lines[0],
            b"{c.__class__}",
            b"{c} %s {}",
            b"\x0c",
        ]
    )
    lines.insert(rng.randrange(len(lines) + 1), odd)
    return b"\n".join(lines) + b"\n", False


# ------------------------------------------------------------------------------ arrays and zips


def npy(rng: random.Random, content: bytes) -> Changed:
    """A .npy of another header over the same numbers, or with others."""
    array = np.load(io.BytesIO(content), allow_pickle=False)
    raw = array.tobytes()
    choice = rng.randrange(9)
    if choice == 0 and array.dtype.names is None:
        return saved(np.asfortranarray(array)), False
    if choice == 1:
        return with_header(
            raw, repr(array.dtype.str), array.shape, rng.choice([2, 3])
        ), array.dtype.names is None
    if choice == 2:
        shape = rng.choice(
            [
                (2**62,),
                (10**9, 10**9),
                (-1,),
                (-3, 3),
                (0,),
                (),
                (True,),
                (1.5,),
                (10**400,),
                (*array.shape, 1),
                (len(array) + 1, *array.shape[1:]),
                (*array.shape[:1], 2**31),
                (*array.shape[:1], 20_000_000),
            ]
        )
        return with_header(raw, repr(np.lib.format.dtype_to_descr(array.dtype)), shape, 1), False
    if choice == 3:
        descr = rng.choice(
            [
                "'|O'",
                "'<U9'",
                "'>f4'",
                "'<f2'",
                "'<c8'",
                "'|V16'",
                "'<M8[s]'",
                "('<f4', (2,))",
                "[('f0', '>u8'), ('f1', '<u8')]",
                "[('f0', '|O')]",
                "'<f16'",
                "'|b1'",
                "1",
                "None",
            ]
        )
        return with_header(raw, descr, array.shape, 1), False
    if choice == 4:
        header = rng.choice(
            [b"(" * 9000, b"-" * 9000 + b"1", b"{'descr': " * 900, b"\0" * 64, b"{}", b"9" * 9000]
        )
        return b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header + raw, False
    if choice == 5:
        size = rng.choice([2**32 - 1, 2**31, 200_000_000])
        return b"\x93NUMPY\x02\0" + struct.pack("<I", size) + b" " * 3000 + raw, False
    if array.dtype.names is None and array.ndim == 2 and array.dtype.kind == "f":
        odd = rng.choice([np.nan, np.inf, 0.0, 1e38, 1e-45, -0.0])
        changed = array.copy()
        if rng.random() < 0.5:
            changed[rng.randrange(len(array))] = odd
        else:
            changed[rng.randrange(len(array)), rng.randrange(array.shape[1])] = odd
        return saved(changed), False
    return saved(rng.choice([array[::-1], np.repeat(array, 3, 0), array[:0], array[:1]])), False


def with_header(raw: bytes, descr: str, shape: Any, version: int) -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape!r}, }}".encode()
    length = 2 if version == 1 else 4
    header += b" " * (-(len(header) + 7 + length) % 64) + b"\n"
    size = len(header).to_bytes(length, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + size + header + raw


def saved(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def zip_file(rng: random.Random, content: bytes) -> Changed:
    """An archive with correct checksums, one member of which is another."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    place = rng.randrange(len(members))
    if rng.random() < 0.4:  # the program of a torch file
        place = next((p for p, (name, _) in enumerate(members) if name.endswith(".pkl")), place)
    name, member = members[place]
    torch = any(name.endswith("data.pkl") for name, _ in members)
    choice, kind, same = rng.randrange(12), zipfile.ZIP_STORED, False
    if choice == 0 and not torch:
        kind, same = rng.choice([zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]), True
    elif choice == 1:
        members.append((name, rng.choice([member, b"", member[:-5]])))  # the same name twice
    elif choice == 2:
        del members[place]
    elif choice == 3:
        members[place] = (
            rng.choice(["../../x.npy", "/x.npy", "", name.upper(), "a\nb.npy", "x" * 60_000]),
            member,
        )
    elif choice == 4:
        members.append((rng.choice(["extra.npy", "readme.txt", "data.pkl", "b/data.pkl"]), member))
    elif choice == 5:
        return with_bomb(members, place), False
    elif choice == 6:
        members[place] = (
            name,
            rng.choice(
                [b"", b"N.", b"\x80\x02", b"\x80\x02}.", b"(" * 60_000 + b"t" * 60_000 + b"."]
            ),
        )
    elif name.endswith(".npy"):
        members[place] = (name, npy(rng, member)[0])
    else:
        members[place] = (name, mutate.damage(rng, member, []))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", kind, compresslevel=1) as archive:
        for name, member in members:
            try:
                archive.writestr(name or zipfile.ZipInfo(name), member, kind)
            except UserWarning:  # a name twice, under pytest
                continue
    content = file.getvalue()
    if choice == 7:  # encrypted, it says
        content = content.replace(b"PK\x01\x02\x14\x03\x14\0\0\0", b"PK\x01\x02\x14\x03\x14\0\1\0")
    return content, same


@functools.cache
def _zeros(chunks: int) -> tuple[bytes, bytes]:
    """So many times 16 MB of zeros, deflated after whatever was; and one of them."""
    chunk = bytes(1 << 24)
    packer = zlib.compressobj(1, wbits=-15)
    packed = packer.compress(chunk) + packer.flush(zlib.Z_FULL_FLUSH)
    return packed * chunks + zlib.compressobj(1, wbits=-15).flush(), chunk


def with_bomb(members: list[tuple[str, bytes]], place: int, chunks: int = 32) -> bytes:
    """An archive in which a member goes on with 512 MB of zeros, in half a megabyte."""
    packed, chunk = _zeros(chunks)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are there twice
        for number, (name, member) in enumerate(members):
            info = zipfile.ZipInfo(name)
            if number != place:
                archive.writestr(info, member)
                continue
            packer = zlib.compressobj(1, wbits=-15)
            head = packer.compress(member) + packer.flush(zlib.Z_FULL_FLUSH)
            archive.writestr(info, head + packed)
            # what readers believe is the list at the end, which is made of this
            info.compress_type = zipfile.ZIP_DEFLATED
            info.file_size = len(member) + chunks * len(chunk)
            info.CRC = zlib.crc32(member)
            for _ in range(chunks):
                info.CRC = zlib.crc32(chunk, info.CRC)
    return file.getvalue()


def safetensors_file(rng: random.Random, content: bytes) -> Changed:
    """Another header; of our models' JSON in the metadata, too."""
    size = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    choice, same = rng.randrange(8), False
    tensors = [name for name in header if name != "__metadata__"]
    if choice == 0:
        same = True  # in another order
        header = dict(reversed(header.items()))
    elif choice in (1, 2, 3) and header.get("__metadata__"):
        key = rng.choice(list(header["__metadata__"]))
        about = json.loads(header["__metadata__"][key])
        header["__metadata__"][key] = dumps(change_tree(rng, about)).decode()
    elif choice == 4:
        header[rng.choice(tensors)]["dtype"] = rng.choice(
            ["BF16", "F8_E4M3", "I32", "BOOL", "U64", "F16", "C64", "F4"]
        )
    elif choice == 5:
        header[rng.choice(tensors)]["shape"] = rng.choice(
            [[], [2**62, 0], [0, 2**62], [1, 1], [-1], [2**63, 2]]
        )
    elif choice == 6:
        numbers = np.frombuffer(data[: len(data) // 4 * 4], "<f4").copy()
        numbers[rng.randrange(len(numbers))] = rng.choice([np.nan, np.inf, -1.0, 0.0, 1e38])
        data = numbers.tobytes() + data[len(data) // 4 * 4 :]
    else:
        header = change_tree(rng, header)
    text = dumps(header)
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data, same


# ------------------------------------------------------------------------------------- pictures


def chunk(name: bytes, content: bytes) -> bytes:
    check = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)


@functools.cache
def png_of(width: int, height: int, depth: int = 8, color: int = 0) -> bytes:
    """Black, whatever its size: rows deflate to nothing."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    rows = zlib.compress(bytes(min((width * depth // 8 + 1) * height, 200_000_000)), 1)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


_SIZES = [
    (1, 10_000_000),
    (10_000_000, 1),
    (1, 70_000),
    (70_000, 1),
    (20_000, 20_000),
    (9_400, 9_400),
    (1, 1),
    (2**31 - 1, 1),
    (3, 20_000),
]
_EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"


def image_file(rng: random.Random, content: bytes) -> Changed:
    from PIL import Image

    choice = rng.randrange(5)
    if choice == 0:
        return png_of(*rng.choice(_SIZES)), False
    if choice == 1:
        return png_of(*rng.choice(_SIZES), *rng.choice([(1, 0), (16, 0)])), False
    if choice == 2:
        return rng.choice(
            [_EPS, b"P6 9 9 255 ", b"P6 99999 99999 255 ", b"GIF89a", b"BM" + bytes(60), b"<svg/>"]
        ), False
    if choice == 3:
        with Image.open(io.BytesIO(content)) as image:
            file = io.BytesIO()
            image.convert("RGB").save(file, rng.choice(["BMP", "PPM", "PNG", "TIFF"]))
        return file.getvalue(), True
    return mutate.flip(rng, content), False
