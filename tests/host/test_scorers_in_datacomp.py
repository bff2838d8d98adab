"""Scorers of images in DataComp's own environment give the scores that they give here.

DATACOMP_PYTHON    a Python of DataComp's own environment (torch 1.13, open_clip 2.16.1)
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")

from datacomp_flyt.clip.models import load_clip_model
from tests.open_clip_hook.running import SHARDS, environment, python
from tests.scorers.base.made import made_head
from tests.scorers.hype.made_hype import Sizes, made_reference, made_state

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def datacomp_python() -> str:
    program = os.environ.get("DATACOMP_PYTHON")
    if not program:
        pytest.skip("DATACOMP_PYTHON does not name a Python of DataComp's environment")
    return program


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Each scorer of images with weights of its own, on a text tower of 16 tokens or HYPE's."""
    folder = tmp_path_factory.mktemp("weights")
    clip = load_clip_model("flyt-tiny", "random", "reference").model.state_dict()
    torch.save(clip, folder / "clip.pt")
    head = made_head(2 * 64, 8, arrays=None)
    state = {f"clip_model.{name}": value for name, value in clip.items()}
    state |= {name: torch.from_numpy(array) for name, array in head.tensors("glu_model.").items()}
    torch.save(state, folder / "flyt.pt")
    sizes = Sizes(context=77)
    torch.save(made_state(sizes), folder / "hype.pt")
    torch.save(made_reference(sizes.out), folder / "reference.pt")
    model = ["--model", "flyt-tiny"]
    return {
        "dfn": [*model, "--checkpoint", str(folder / "clip.pt")],
        "e_flyt": [*model, "--scoring_model", str(folder / "flyt.pt")],
        "hype": [
            *("--checkpoint", str(folder / "hype.pt")),
            *("--reference", str(folder / "reference.pt")),
        ],
    }


@pytest.mark.parametrize("scorer", ["dfn", "e_flyt", "hype"])
def test_the_scores_are_those_of_this_environment(
    scorer: str, flags: dict[str, list[str]], datacomp_python: str, tmp_path: Path
) -> None:
    words = ["-m", "datacomp_flyt.cli", "score", "--scorer", scorer, *flags[scorer]]
    words += ["--shards_dir", str(SHARDS / "00000000.tar"), "--num_workers", "1"]
    columns = []
    for folder, program in ((tmp_path / "there", datacomp_python), (tmp_path / "here", None)):
        options = {} if program is None else {"program": program}
        where = ["--scores_dir", str(folder)]
        python(*words, *where, env=environment("installed"), **options)
        (path, *_) = sorted(folder.rglob("*.parquet"))
        columns.append(pq.read_table(path).to_pandas().set_index("uid").sort_index())
    there, here = columns
    assert list(there.columns) == list(here.columns)
    assert there.index.equals(here.index)
    # float32 models: PyTorch's own kernels and Pillow's resizing differ by rounding alone
    np.testing.assert_allclose(there.to_numpy(), here.to_numpy(), rtol=2e-3, atol=2e-4)
