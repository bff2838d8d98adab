"""A reference set of our own: whose vectors are in it, and that HYPE's scorer takes it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")
pytest.importorskip("webdataset")


from datacomp_flyt.scorers.hype.model import HypeModel, load_reference
from datacomp_flyt.scorers.hype.reference import main, make_reference
from tests.conftest import hex_uids, refusal
from tests.flyt.tars import write_tar
from tests.scorers.hype.made_hype import TINY, jpeg, made_state, save

TARS, ROWS = 3, 4


def write_tars(folder: Path) -> list[str]:
    """Twelve pairs, of which one has no usable picture."""
    uids = hex_uids(TARS * ROWS)
    tars = []
    for start in range(0, len(uids), ROWS):
        samples = [
            {
                "jpg": jpeg(row, (20, 20)) if row != 5 else b"no picture",
                "txt": f"picture {row}".encode(),
                "json": json.dumps({"uid": uids[row]}).encode(),
            }
            for row in range(start, start + ROWS)
        ]
        tars.append(str(write_tar(folder / f"{start}.tar", samples)))
    return tars


@pytest.fixture(scope="module")
def model() -> HypeModel:
    return HypeModel(made_state(), "a test")


def test_vectors_are_those_of_random_tars(tmp_path: Path, model: HypeModel) -> None:
    tars = write_tars(tmp_path)
    everything = make_reference(model, tars, 11)
    parts = {tar: make_reference(model, [tar], ROWS - (tar == tars[1])) for tar in tars}
    largest = max(float(part[name].abs().max()) for part in parts.values() for name in part)
    bound = TINY.bound(largest, computed=2)
    orders = set()
    for seed in range(20):
        found = make_reference(model, tars[::-1], 11, seed, batch_size=3, threads=2)
        order = sorted(
            tars,
            key=lambda tar: [
                row
                for row in range(11)
                if np.allclose(found["txt"][row], parts[tar]["txt"][0], rtol=0, atol=bound)
            ],
        )
        orders.add(tuple(order))
        for name in ("img", "txt"):
            assert found[name].shape == (11, TINY.out)
            wanted = torch.cat([parts[tar][name] for tar in order])
            torch.testing.assert_close(found[name], wanted, atol=bound, rtol=0)
    assert len(orders) == 6
    some = make_reference(model, tars, 6)
    torch.testing.assert_close(some["img"], everything["img"][:6], atol=bound, rtol=0)
    assert "have 11 usable pairs" in refusal(make_reference, model, tars, 12)


def test_command(tmp_path: Path, model: HypeModel, capsys: pytest.CaptureFixture[str]) -> None:
    tars = write_tars(tmp_path / "tars")
    checkpoint = save(tmp_path / "ckpt.pt", made_state())
    flags = ["--checkpoint", str(checkpoint), "--shards_dir", str(tmp_path / "tars")]

    def run(out: Path, number: int = 7) -> None:
        main([*flags, "--num_examples", str(number), "--seed", "4", "--out", str(out)])

    out = tmp_path / "reference.safetensors"
    run(out)
    images, texts = load_reference(out, "reference", TINY.out)
    wanted = make_reference(model, tars, 7, 4)
    assert torch.equal(images, wanted["img"])
    assert torch.equal(texts, wanted["txt"])
    before = sorted(path.name for path in tmp_path.iterdir())
    for bad, number, message in (
        (tmp_path / "r.pt", 7, "is no .safetensors file"),
        (tmp_path / "r.safetensors", 0, "--num_examples 0"),
        (tmp_path / "r.safetensors", 12, "have 11 usable pairs"),
    ):
        with pytest.raises(SystemExit) as caught:
            run(bad, number)
        assert caught.value.code == 2
        assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == before
