"""`check_parts`: parts of a resharded subset that add up, and parts that do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("webdataset")

from datacomp_flyt.cli import main
from datacomp_flyt.datacomp.part_counts import PartsReport
from datacomp_flyt.datacomp.resharded_parts import check_parts
from datacomp_flyt.datacomp.resharder_run import open_run
from tests.conftest import hex_uids, refusal
from tests.datacomp.made_parts import write_part, write_subset_of, write_tar
from tests.engines.here import Here

UIDS = sorted(hex_uids(12))
DRAWS = {uid: 1 + row % 3 for row, uid in enumerate(UIDS[:10])}  # two are not drawn
SHARDS = [UIDS[start::4] for start in range(4)]  # the uids of each shard of the pool


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


def check(subset: Path, *parts: Path, shards_dir: Path | None = None) -> PartsReport:
    """Run `check_parts` without worker processes."""
    folder = None if shards_dir is None else str(shards_dir)
    return check_parts(subset, parts, shards_dir=folder, engine=Here())


def test_two_parts_that_add_up(tmp_path: Path, subset: Path) -> None:
    a = write_part(tmp_path / "a", subset, draws_of(0, 1))
    b = write_part(tmp_path / "b", subset, draws_of(2, 3), 2, None)
    report = check(subset, a, b)
    assert report.valid
    total, draws_of_a = sum(DRAWS.values()), sum(draws_of(0, 1).values())
    fact_a, fact_b, sum_of_both = report.facts
    tars = -(-draws_of_a // 4)
    assert fact_a == f"{a}: {draws_of_a} draws in {tars} tars, of shards 0 to 1 of shards"
    assert fact_b.endswith("of shards 2 to the last that it found of shards")
    assert sum_of_both == f"{total} of {total} draws are in the parts"


def test_the_command_prints_the_report(
    tmp_path: Path, subset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = write_part(tmp_path / "a", subset, DRAWS)
    half = write_part(tmp_path / "b", subset, draws_of(0, 1))
    for part, code, last in ((whole, 0, "the parts add up"), (half, 1, "the parts do not add up")):
        with pytest.raises(SystemExit) as ended:
            main(["check_parts", str(part), "--subset", str(subset), "--num_workers", "1"])
        out, err = capsys.readouterr()
        assert (ended.value.code, err) == (code, "")
        report = check(subset, part)
        facts = [f"  {fact}" for fact in report.facts]
        problems = [f"  WRONG: {problem}" for problem in report.problems]
        assert out.splitlines() == [*facts, *problems, last]


def test_a_shard_in_two_parts(tmp_path: Path, subset: Path) -> None:
    a = write_part(tmp_path / "a", subset, draws_of(0, 1))
    b = write_part(tmp_path / "b", subset, draws_of(1, 2, 3), 1, 3)
    report = check(subset, a, b)
    assert not report.valid
    (problem,) = report.problems
    first = min(draws_of(1))
    assert f"{len(draws_of(1))} examples are in more than one part, the first is {first}" in problem
    assert f"in {a}/0000000" in problem
    assert f"and {b}/0000000" in problem
    assert "made of shards 0 to 1 of shards" in problem
    assert "made of shards 1 to 3 of shards" in problem


def test_a_shard_in_no_part(tmp_path: Path, subset: Path, pool: Path) -> None:
    a = write_part(tmp_path / "a", subset, draws_of(0, 1))
    b = write_part(tmp_path / "b", subset, draws_of(3), 3, 1)
    lost = draws_of(2)
    for shards_dir in (None, pool):
        report = check(subset, a, b, shards_dir=shards_dir)
        assert not report.valid
        (problem,) = report.problems
        assert f"{sum(lost.values())} draws of {len(lost)} examples are in no part" in problem
        assert f"the first is {min(lost)}" in problem
        assert ("give --shards_dir" in problem) == (shards_dir is None)
    assert f"the first is {pool}/00000002.tar with {len(lost)}, such as {min(lost)}" in problem


def test_images_that_the_pool_lacks(tmp_path: Path, subset: Path, pool: Path) -> None:
    write_tar(pool / "00000002.tar", [("000020000", UIDS[10])])
    a = write_part(tmp_path / "a", subset, draws_of(0, 1))
    b = write_part(tmp_path / "b", subset, draws_of(3), 2)
    lost = draws_of(2)
    report = check(subset, a, b, shards_dir=pool)
    assert report.valid
    fact = report.facts[-1]
    assert f"{sum(lost.values())} draws of {len(lost)} examples are in no part" in fact
    assert fact.endswith("the pool has no image of any")


def test_a_shard_of_the_pool_that_cannot_be_read(tmp_path: Path, subset: Path, pool: Path) -> None:
    """The other shards are read."""
    (pool / "00000000.tar").write_bytes((pool / "00000000.tar").read_bytes()[:700])
    part = write_part(tmp_path / "a", subset, draws_of(0, 1))
    for left_out in (True, False):
        report = check(subset, part, shards_dir=pool)
        assert not report.valid
        (problem,) = report.problems
        assert ("2 shards of the pool have examples" in problem) == left_out
        assert f"1 shards of the pool may have them, for they cannot be read: {pool}" in problem
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
    assert str(said) in refusal(open_run, part, subset)


def test_an_example_that_lost_a_draw(tmp_path: Path, subset: Path) -> None:
    uid = next(uid for uid, times in DRAWS.items() if times == 3)
    part = write_part(tmp_path / "a", subset, DRAWS | {uid: 2})
    report = check(subset, part)
    (problem,) = report.problems
    assert not report.valid
    assert f"1 examples are there too seldom, so run the resharder of that part again: the first " \
        f"is {uid} in {part}/0000000" in problem  # fmt: skip
    assert problem.endswith("with 2 draws of 3")


def test_a_uid_that_the_pool_has_twice(tmp_path: Path, subset: Path) -> None:
    part = write_part(tmp_path / "a", subset, DRAWS)
    keys = [f"{uid}-{number}" for uid in UIDS[:3] for number in range(DRAWS[uid])]
    write_tar(part / "00000000.tar", [(key, "") for key in [keys[0], *keys[:4]]])
    report = check(subset, part)
    assert not report.valid
    assert any("too often, so the pool has them twice" in problem for problem in report.problems)
    assert any(f"{UIDS[0]} in {part}/00000000.tar with 2 draws of 1" in w for w in report.problems)


def test_parts_that_are_not_whole(tmp_path: Path, subset: Path) -> None:
    part = write_part(tmp_path / "a", subset, DRAWS)
    first, second = part / "00000000.tar", part / "00000001.tar"
    good, meta = first.read_bytes(), (part / "meta.json").read_text()

    def said() -> str:
        return refusal(check_parts, subset, [part], engine=Here())

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
    assert "00000009.tar is not listed in its meta.json" in said()
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
    report = check_parts(subset, [part], engine=Here())
    (problem,) = report.problems
    assert "its meta.json says 99" in problem
    assert report.missing.draws == 0


def test_parts_of_another_subset(tmp_path: Path, subset: Path) -> None:
    part = write_part(tmp_path / "a", subset, DRAWS)
    other = write_subset_of(tmp_path / "other.npy", dict.fromkeys(UIDS, 2))
    same_size = np.load(subset)
    same_size[-1] = np.load(other)[-1]
    np.save(tmp_path / "close.npy", np.sort(same_size))
    for path in (other, tmp_path / "close.npy"):
        said = refusal(check_parts, path, [part], engine=Here())
        assert f"part {part} is of another subset" in said
    assert "named twice" in refusal(check_parts, subset, [part, part], engine=Here())
    assert "is not a folder" in refusal(check_parts, subset, [tmp_path / "none"], engine=Here())
    assert "cannot be read as .npy" in refusal(
        check_parts, tmp_path / "none", [part], engine=Here()
    )
