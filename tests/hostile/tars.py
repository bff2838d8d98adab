"""Tars that no img2dataset writes."""

from __future__ import annotations

import gzip
import io
import json
import random
import tarfile

from tests.hostile import structures

Members = list[tuple[tarfile.TarInfo, bytes]]


def info_of(
    name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.type = len(content), kind
    return info, content


def tar_of(members: Members, form: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def sparse(name: str, size: int) -> bytes:
    """One member of GNU's old sparse format: `size` zeros, of which none is stored."""
    info = tarfile.TarInfo(name)
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[156:157] = tarfile.GNUTYPE_SPARSE
    block[386:410] = b"%011o\0%011o\0" % (0, 0)
    block[482:483] = b"\0"
    block[483:495] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block[:512])
    return bytes(block)


def with_size(content: bytes, place: int, size: int) -> bytes:
    """The header at `place` says another size, with its checksum put right."""
    block = bytearray(content[place : place + 512])
    block[124:136] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return content[:place] + bytes(block) + content[place + 512 :]


def tar_file(rng: random.Random, content: bytes) -> tuple[bytes, bool]:
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        members: Members = []
        for info in archive:
            handle = archive.extractfile(info)
            members.append((info, handle.read() if handle else b""))
    place = rng.randrange(len(members))
    info, stored = members[place]
    choice = rng.randrange(14)
    if choice == 0:
        return tar_of(members, rng.choice([tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])), True
    if choice == 1:
        return gzip.compress(content, 1), True
    if choice == 2:
        kind = rng.choice(
            [
                tarfile.SYMTYPE,
                tarfile.LNKTYPE,
                tarfile.CHRTYPE,
                tarfile.BLKTYPE,
                tarfile.FIFOTYPE,
                tarfile.DIRTYPE,
            ]
        )
        other, _ = info_of(rng.choice(["x", "00000.jpg", "../x.jpg"]), kind=kind)
        other.linkname = rng.choice(["/etc/passwd", "../../x", info.name, other.name])
        members.insert(place, (other, b""))
        return tar_of(members), False
    if choice == 3:
        info.name = rng.choice(
            [
                "/etc/x.jpg",
                "../../x.jpg",
                "x" * 300 + ".jpg",
                "a\nb.jpg",
                "é.jpg",
                ".jpg",
                "x",
                "__x__/a.jpg",
                "a/../b.json",
            ]
        )
        return tar_of(members), False
    if choice == 4:
        members.insert(place, members[rng.randrange(len(members))])
        return tar_of(members), False
    if choice in (5, 6):  # json
        place = rng.choice([2, 5, 8, 11])
        info, stored = members[place]
        about = json.loads(stored)
        odd = rng.choice([None, 5, "x", "\ud800" * 32, "é" * 32, "F" * 32, "f" * 3_000_000, [], {}])
        changed = rng.choice(
            [
                structures.json_file(rng, stored)[0],
                structures.dumps({**about, "uid": odd}),
                b"[" + b"[]," * 7_000_000 + b"[]]",
            ]
        )
        members[place] = info_of(info.name, changed)
        return tar_of(members), False
    if choice == 7:
        start = content.index(info.name.encode() + b"\0")
        size = rng.choice([0, 1, len(stored) + 1, 10**6, 2**33, 2**60, -5])
        return with_size(content, start, size), False
    if choice == 8:
        info.pax_headers = rng.choice(
            [
                {"size": "-1"},
                {"size": "9" * 30},
                {"path": "x\0y"},
                {"GNU.sparse.map": "0,9,1"},
                {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"},
                {"hdrcharset": "BINARY"},
                {"a": "b" * 3_000_000},
                {"mtime": "nan"},
                {"uid": "x"},
            ]
        )
        return tar_of(members), False
    if choice == 9:
        end = content.index(info.name.encode() + b"\0")
        name = rng.choice(["00000.png", "99999.json", "99999.txt"])
        return content[:end] + sparse(name, rng.choice([10**6, 3 * 10**9, 10**13])) + content[
            end:
        ], False
    if choice == 10:
        del members[place]
        return tar_of(members), False
    if choice == 11:
        rng.shuffle(members)
        return tar_of(members), False
    if choice == 12:
        text = rng.choice(
            [b"\xff", b"\0\x1b[2J", b"<script>", "\u202e".encode(), b"x" * 3_000_000, b""]
        )
        members[1] = info_of("00000.txt", text)
        return tar_of(members), False
    picture = structures.image_file(rng, members[0][1])[0]
    members[0] = info_of("00000.png", picture)
    return tar_of(members), False


def plain_tar_file(rng: random.Random, content: bytes) -> tuple[bytes, bool]:
    """For readers that may refuse a compressed one."""
    changed, same = tar_file(rng, content)
    return changed, same and not changed.startswith(b"\x1f\x8b")
