"""Commands that read the tars of a folder, in this process."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    pytest.importorskip("torch")
    from tests.scorers.base.image_tars import checkpoint, small_model, small_weights

    folder = tmp_path_factory.mktemp("model")
    config = small_model(folder)
    return config, checkpoint(folder / "weights.pt", small_weights(config))


@pytest.fixture
def words(
    tmp_path: Path, model: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> dict[str, list[object]]:
    """`embed` and `score` of the tars in `tmp_path / "tars"`."""
    pytest.importorskip("open_clip")
    from datacomp_flyt.clip import embed as embedding
    from datacomp_flyt.scorers.base import score as scoring
    from tests.scorers.base.inline import InlineEngine

    for module in (embedding, scoring):
        monkeypatch.setattr(module, "make_engine", lambda *_, **__: InlineEngine())
    tars = tmp_path / "tars"
    tars.mkdir()
    embed = ["embed", "--metadata_dir", tmp_path / "out", "--encoder", f"b={model[0]}:{model[1]}"]
    score = ["score", "--scorer", "dfn", "--scores_dir", tmp_path, "--column", "out"]
    return {
        "embed": [*embed, "--shards_dir", tars],
        "score": [*score, "--shards_dir", tars, "--model", model[0], "--checkpoint", model[1]],
    }
