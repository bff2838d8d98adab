"""Members of a tar that would fill the memory are refused before they are read."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("webdataset")

from datacomp_flyt.pool.uids import format_uid
from datacomp_flyt.tars.samples import NO_UID, Skip, UnreadableShard, read_tar, stored_uid
from datacomp_flyt.tars.uids import first_uid
from tests.conftest import hex_uids

LARGE = 1 << 40
END = bytes(2 * tarfile.BLOCKSIZE)
UIDS = hex_uids(2)


def header(name: str, kind: bytes, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT)


def old_gnu_sparse(real_size: int) -> bytes:
    """Make a sparse member of old GNU tar: 512 bytes of data, and holes up to its real size."""
    block = bytearray(header("0.jpg", tarfile.GNUTYPE_SPARSE, 512))
    number = b"%011o\0"
    block[386:410] = number % 0 + number % 512  # the only piece: its offset and its length
    block[483:495] = number % real_size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + bytes(512)


def pax(records: dict[str, str], member: bytes) -> bytes:
    """Make an extended header, and the member that it is of."""
    content = tarfile.TarInfo._create_pax_generic_header(  # type: ignore[attr-defined]
        records, tarfile.XHDTYPE, "utf-8"
    )
    return bytes(content) + member


REGULAR = header("0.jpg", tarfile.REGTYPE, 512) + bytes(512)
SPARSE = {"GNU.sparse.size": f"{1 << 20}", "GNU.sparse.map": "0,512", "GNU.sparse.numblocks": "1"}
TARS = {
    "large": (header("0.jpg", tarfile.REGTYPE, LARGE), f"{LARGE:,} bytes"),
    "extended header": (header("x", tarfile.XHDTYPE, 1 << 30), f"{1 << 30:,} bytes"),
    "long name": (header("x", tarfile.GNUTYPE_LONGNAME, 1 << 30), f"{1 << 30:,} bytes"),
    "size in an extended header": (pax({"size": str(LARGE)}, REGULAR), f"{LARGE:,} bytes"),
    "sparse": (old_gnu_sparse(1 << 20), f"{1 << 20:,} bytes"),
    "sparse, pax": (pax(SPARSE, REGULAR), f"{1 << 20:,} bytes"),
}


@pytest.mark.parametrize(("content", "said"), TARS.values(), ids=TARS.keys())
def test_members_that_are_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(content + END)
    with pytest.raises(UnreadableShard, match=f"^its member '.*' has {said}$"):
        list(read_tar(str(path)))


def test_a_json_of_megabytes_is_not_parsed() -> None:
    """Its Python objects would take a hundred times as much memory."""
    facts = {"uid": UIDS[0], "list": "x" * (1 << 22)}
    with pytest.raises(Skip, match=NO_UID):
        stored_uid({"json": json.dumps(facts).encode()})
    assert stored_uid({"json": json.dumps(facts | {"list": "x"}).encode()}) == UIDS[0]


def test_the_first_uid_is_of_a_json_of_usual_size(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for uid, length in zip(UIDS, (1 << 20, 10), strict=True):
            content = json.dumps({"uid": uid, "text": "x" * length}).encode()
            member = tarfile.TarInfo(f"{uid}.json")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    found = first_uid(str(tmp_path / "a.tar"))
    assert len(found) == 1
    assert format_uid(np.asarray(found)[0]) == UIDS[1]
