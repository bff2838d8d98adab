"""Parts of a resharded subset: what adds up, and every way in which they do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("webdataset")

from datacomp_flyt.cli import check_parts as command
from datacomp_flyt.cli import main
from datacomp_flyt.datacomp.resharded_parts import check_parts, open_part
from tests.conftest import hex_uids, refusal
from tests.datacomp.made_parts import write_part, write_subset_of, write_tar
from tests.engines.here import Here

UIDS = sorted(hex_uids(12))
DRAWS = {uid: 1 + place % 3 for place, uid in enumerate(UIDS[:10])}  # two are not drawn
SHARDS = [UIDS[0::4], UIDS[1::4], UIDS[2::4], UIDS[3::4]]  # of the pool


def draws_of(*shards: int) -> dict[str, int]:
    return {uid: DRAWS[uid] for shard in shards for uid in SHARDS[shard] if uid in DRAWS}


@pytest.fixture
def subset(tmp_path: Path) -> Path:
    return write_subset_of(tmp_path / "subset.npy", DRAWS)


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    (tmp_path / "shards").mkdir()
    for number, uids in enumerate(SHARDS):
        samples = [(f"{number:05d}{row:04d}", uid) for row, uid in enumerate(uids)]
        write_tar(tmp_path / "shards" / f"{number:08d}.tar", samples)
    return tmp_path / "shards"


class Checked:
    """What `datacomp-flyt check_parts` said, without workers."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *words: object) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(command, "ProcessEngine", lambda num_workers, device: Here())
            with pytest.raises(SystemExit) as ended:
                main(["check_parts", *map(str, words)])
        self.code = ended.value.code
        self.out, self.err = capsys.readouterr()
        self.wrong = [line for line in self.out.splitlines() if line.startswith("  WRONG: ")]


Capture = pytest.CaptureFixture[str]


def test_two_parts_that_add_up(tmp_path: Path, subset: Path, capsys: Capture) -> None:
    a = write_part(tmp_path / "a", subset, draws_of(0, 1))
    b = write_part(tmp_path / "b", subset, draws_of(2, 3), 2, None)
    found = Checked(capsys, a, b, "--subset", subset)
    assert (found.code, found.err) == (0, "")
    total, of_a = sum(DRAWS.values()), sum(draws_of(0, 1).values())
    assert f"{a}: {of_a} draws in {-(-of_a // 4)} tars, of shards 0 to 1 of shards" in found.out
    assert "of shards 2 to the last that it found of shards" in found.out
    assert f"{total} of {total} draws are in the parts" in found.out
    assert found.out.splitlines()[-1] == "the parts add up"


def test_a_shard_in_two_parts(tmp_path: Path, subset: Path, capsys: Capture) -> None:
    a = write_part(tmp_path / "a", subset, draws_of(0, 1))
    b = write_part(tmp_path / "b", subset, draws_of(1, 2, 3), 1, 3)
    found = Checked(capsys, a, b, "--subset", subset)
    assert found.code == 1
    (wrong,) = found.wrong
    first = min(draws_of(1))
    assert f"{len(draws_of(1))} examples are in more than one part, the first is {first}" in wrong
    assert f"in {a}/0000000" in wrong
    assert f"and {b}/0000000" in wrong
    assert "made of shards 0 to 1 of shards" in wrong
    assert "made of shards 1 to 3 of shards" in wrong


def test_a_shard_in_no_part(tmp_path: Path, subset: Path, pool: Path, capsys: Capture) -> None:
    a = write_part(tmp_path / "a", subset, draws_of(0, 1))
    b = write_part(tmp_path / "b", subset, draws_of(3), 3, 1)
    lost = draws_of(2)
    for words in ((), ("--shards_dir", pool)):
        found = Checked(capsys, a, b, "--subset", subset, *words)
        assert found.code == 1
        (wrong,) = found.wrong
        assert f"{sum(lost.values())} draws of {len(lost)} examples are in no part" in wrong
        assert f"the first is {min(lost)}" in wrong
        assert ("give --shards_dir" in wrong) == (not words)
    assert f"the first is {pool}/00000002.tar with {len(lost)}, such as {min(lost)}" in wrong


def test_images_that_the_pool_lacks(
    tmp_path: Path, subset: Path, pool: Path, capsys: Capture
) -> None:
    write_tar(pool / "00000002.tar", [("000020000", UIDS[10])])
    a = write_part(tmp_path / "a", subset, draws_of(0, 1))
    b = write_part(tmp_path / "b", subset, draws_of(3), 2)
    lost = draws_of(2)
    found = Checked(capsys, a, b, "--subset", subset, "--shards_dir", pool)
    assert (found.code, found.wrong) == (0, [])
    assert f"{sum(lost.values())} draws of {len(lost)} examples are in no part" in found.out
    assert "the pool has no image of any" in found.out


def test_a_shard_of_the_pool_that_cannot_be_read(
    tmp_path: Path, subset: Path, pool: Path, capsys: Capture
) -> None:
    """Others are read all the same."""
    (pool / "00000000.tar").write_bytes((pool / "00000000.tar").read_bytes()[:700])
    part = write_part(tmp_path / "a", subset, draws_of(0, 1))
    for left_out in (True, False):
        found = Checked(capsys, part, "--subset", subset, "--shards_dir", pool)
        assert (found.code, found.err) == (1, "")
        (wrong,) = found.wrong
        assert ("2 shards of the pool have examples" in wrong) == left_out
        assert f"1 shards of the pool may have them, for they cannot be read: {pool}" in wrong
        for number in (2, 3):
            write_tar(pool / f"{number:08d}.tar", [])


@pytest.mark.parametrize(
    "change",
    [
        {"output_shard_format": "{0.x}.tar"},
        {"output_shard_format": "{0:0999999999d}.tar"},
        {"output_shard_format": "{}{}.tar"},
        {"output_shard_count": 10**12},
    ],
)
def test_odd_notes_of_a_part(tmp_path: Path, subset: Path, change: dict[str, Any]) -> None:
    part = write_part(tmp_path / "a", subset, DRAWS)
    meta = json.loads((part / "meta.json").read_text())
    (part / "meta.json").write_text(json.dumps({**meta, **change}))
    missing = part / f"{meta['output_shard_count']:08d}.tar is not there"
    said = missing if "output_shard_count" in change else "meta.json is not what the resharder"
    assert str(said) in refusal(open_part, part, subset)


def test_an_example_that_lost_a_draw(tmp_path: Path, subset: Path, capsys: Capture) -> None:
    uid = next(uid for uid, times in DRAWS.items() if times == 3)
    part = write_part(tmp_path / "a", subset, DRAWS | {uid: 2})
    found = Checked(capsys, part, "--subset", subset)
    (wrong,) = found.wrong
    assert found.code == 1
    assert f"1 examples are there too seldom, so run the resharder of that part again: the first " \
        f"is {uid} in {part}/0000000" in wrong  # fmt: skip
    assert wrong.endswith("with 2 draws of 3")


def test_a_uid_that_the_pool_has_twice(tmp_path: Path, subset: Path, capsys: Capture) -> None:
    part = write_part(tmp_path / "a", subset, DRAWS)
    keys = [f"{uid}-{number}" for uid in UIDS[:3] for number in range(DRAWS[uid])]
    write_tar(part / "00000000.tar", [(key, "") for key in [keys[0], *keys[:4]]])
    found = Checked(capsys, part, "--subset", subset)
    assert found.code == 1
    assert any("too often, so the pool has them twice" in wrong for wrong in found.wrong)
    assert any(f"{UIDS[0]} in {part}/00000000.tar with 2 draws of 1" in w for w in found.wrong)


def test_parts_that_are_not_whole(tmp_path: Path, subset: Path) -> None:
    part = write_part(tmp_path / "a", subset, DRAWS)
    first, second = part / "00000000.tar", part / "00000001.tar"
    good, meta = first.read_bytes(), (part / "meta.json").read_text()

    def said() -> str:
        return refusal(check_parts, subset, [part], Here())

    for content, wanted in (
        (good[:700], "00000000.tar cannot be read"),
        (good[:-10240], "00000000.tar cannot be read"),
        (b"", "00000000.tar cannot be read"),
        (b"no tar at all" * 100, "00000000.tar cannot be read"),
    ):
        first.write_bytes(content)
        assert wanted in said()
    write_tar(first, [("0001", UIDS[0])])
    assert "has a sample '0001'" in said()
    write_tar(first, [(f"{UIDS[11]}-0", "")])
    assert f"00000000.tar has draw 1 of {UIDS[11]}, which {subset} does not" in said()
    write_tar(first, [(f"{UIDS[0]}-1", "")])
    assert f"00000000.tar has draw 2 of {UIDS[0]}" in said()
    first.write_bytes(good)
    (part / "00000009.tar").write_bytes(good)
    assert "00000009.tar is of no run that its meta.json tells of" in said()
    (part / "00000009.tar").unlink()
    content = second.read_bytes()
    second.unlink()
    assert "00000001.tar is not there" in said()
    second.write_bytes(content)
    (part / "meta.json").unlink()
    assert "has no meta.json" in said()
    for spoilt in ("", "[]", "{}", '{"output_shard_count": "x", "output_shard_format": "{"}'):
        (part / "meta.json").write_text(spoilt)
        assert "meta.json is not what the resharder writes" in said()
    (part / "meta.json").write_text(json.dumps(json.loads(meta) | {"output_count": 99}))
    report, lost = check_parts(subset, [part], Here())
    (wrong,) = report.problems
    assert "its meta.json says 99" in wrong
    assert len(lost.uids) == 0


def test_parts_of_another_subset(tmp_path: Path, subset: Path) -> None:
    part = write_part(tmp_path / "a", subset, DRAWS)
    other = write_subset_of(tmp_path / "other.npy", dict.fromkeys(UIDS, 2))
    same_size = np.load(subset)
    same_size[-1] = np.load(other)[-1]
    np.save(tmp_path / "close.npy", np.sort(same_size))
    for path in (other, tmp_path / "close.npy"):
        said = refusal(check_parts, path, [part], Here())
        assert f"part {part} is of another subset" in said
    assert "named twice" in refusal(check_parts, subset, [part, part], Here())
    assert "is no folder" in refusal(check_parts, subset, [tmp_path / "none"], Here())
    assert "cannot be read as .npy" in refusal(check_parts, tmp_path / "none", [part], Here())
