"""HYPE's scores of images and captions, against the loop in float64."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")
pytest.importorskip("webdataset")

from PIL import Image
from torch import Tensor

from datacomp_flyt.clip.inference import inference
from datacomp_flyt.engines.messages import pack, unpack
from datacomp_flyt.pool.uids import format_uid
from datacomp_flyt.scorers.base.score import score
from datacomp_flyt.scorers.hype.hype import Hype
from tests.conftest import hex_uids, refusal
from tests.flyt.tars import write_tar
from tests.oracles.hype import hype_scores
from tests.oracles.hype_model import image_vector, text_vector
from tests.scorers.base.image_tars import scorer_of as from_flags
from tests.scorers.hype.made_hype import (
    TINY,
    Sizes,
    jpeg,
    made_inputs,
    made_reference,
    made_state,
    save,
)

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("hype") / "ckpt.pt", made_state())


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("hype") / "reference.pt", made_reference())


def scorer_of(checkpoint: Path, reference: Path, **options: Any) -> Hype:
    scorer: Hype = unpack(pack(Hype(checkpoint, reference, batch_size=4, **options)))
    scorer.load("cpu")
    return scorer


def scores_by_loop(images: Tensor, texts: Tensor) -> np.ndarray:
    state = {name: tensor.double().numpy() for name, tensor in made_state().items()}
    sets = [made_reference()[name].double().tolist() for name in ("img", "txt")]
    c = float(np.exp(state["curvature"]))
    return np.array(
        [
            hype_scores(image_vector(state, image), text_vector(state, text), *sets, c)
            for image, text in zip(images.double().numpy(), texts.numpy(), strict=True)
        ]
    )


def test_scores_are_those_of_the_loop(checkpoint: Path, reference: Path) -> None:
    images, texts = made_inputs(rows=6)
    wanted = scores_by_loop(images, texts)
    assert (wanted.std(0) > 0.02).all()
    with inference(CPU, "fp32"):
        found = scorer_of(checkpoint, reference).score_batch(images, texts)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, wanted, rtol=0, atol=TINY.bound(np.abs(wanted).max()))


def test_bfloat16_is_of_the_encoders_alone(checkpoint: Path, reference: Path) -> None:
    images, texts = made_inputs(rows=6)
    scorer = scorer_of(checkpoint, reference, precision="bf16")
    with inference(CPU, "fp32"):
        exact = scorer.score_batch(images, texts)
    with inference(CPU, "bf16"):
        found = scorer.score_batch(images, texts)
    assert found.dtype == torch.float32
    assert not torch.equal(found, exact)
    torch.testing.assert_close(found, exact, rtol=0, atol=0.1)
    assert not torch.equal(found.bfloat16().float(), found)


def test_a_tar(tmp_path: Path, checkpoint: Path, reference: Path) -> None:
    """Pictures of any shape and captions of any length; one cannot be decoded."""
    uids = hex_uids(7)
    pictures = [jpeg(row, (20 + 9 * row, 40)) for row in range(7)]
    captions = ["a cat", "", "two  DOGS &amp; a bird", "long " * 50, "ürban", "a cat", "tree"]
    pictures[3] = b"no picture"
    tar = write_tar(
        tmp_path / "0.tar",
        [
            {
                "jpg": picture,
                "txt": text.encode(),
                "json": json.dumps({"uid": uid}).encode(),
            }
            for uid, picture, text in zip(uids, pictures, captions, strict=True)
        ],
    )
    scorer = scorer_of(checkpoint, reference)
    found = scorer.score(str(tar), {})
    assert [format_uid(uid) for uid in found.uids] == uids
    assert np.isnan(found.values).all(1).tolist() == [row == 3 for row in range(7)]
    good = [row for row in range(7) if row != 3]
    images = [scorer.transform(Image.open(io.BytesIO(pictures[row]))) for row in good]
    texts = scorer.tokenize([captions[row] for row in good])
    assert texts.shape == (6, 12)
    wanted = scores_by_loop(torch.stack(images), texts)
    bound = TINY.bound(np.abs(wanted).max())
    np.testing.assert_allclose(found.values[good], wanted, rtol=0, atol=bound)
    again = scorer_of(checkpoint, reference).score(str(tar), {})
    assert again.values.tobytes() == found.values.tobytes()


def test_transform_is_clips() -> None:
    """Bicubic to the shorter side, the middle of it, and OpenAI's mean and deviation."""
    import open_clip

    image = Image.open(io.BytesIO(jpeg(1, (90, 60))))
    small = image.resize((12, 8), Image.Resampling.BICUBIC).crop((2, 0, 10, 8))
    pixels = np.asarray(small, np.float64).transpose(2, 0, 1) / 255
    mean, deviation = (
        np.array(values)[:, None, None]
        for values in (
            (0.48145466, 0.4578275, 0.40821073),
            (0.26862954, 0.26130258, 0.27577711),
        )
    )
    found = open_clip.image_transform(8, is_train=False)(image)
    np.testing.assert_allclose(found.numpy(), (pixels - mean) / deviation, atol=1e-5)


def test_settings_name_the_files_by_content(
    tmp_path: Path, checkpoint: Path, reference: Path
) -> None:
    first = scorer_of(checkpoint, reference)
    json.dumps(first.settings)
    copy = tmp_path / "copy.pt"
    copy.write_bytes(reference.read_bytes())
    assert scorer_of(checkpoint, copy).settings == first.settings
    other = save(tmp_path / "other.pt", made_reference(images=7))
    assert scorer_of(checkpoint, other).settings != first.settings
    assert scorer_of(checkpoint, reference, precision="bf16").settings != first.settings


def test_flags(tmp_path: Path, checkpoint: Path, reference: Path) -> None:
    def message(*flags: object) -> str:
        return refusal(from_flags, Hype, *flags)

    both = ("--checkpoint", checkpoint, "--reference", reference)
    assert message().startswith("--checkpoint is missing: give ckpt.pt")
    assert message(*both[:2]).startswith("--reference is missing: give reference.pt")
    tars = {"shards_dir": str(tmp_path), "scores_dir": tmp_path / "scores"}
    options = {"checkpoint": checkpoint, "reference": reference}
    said = refusal(lambda: score("hype", column="score", **tars, **options))
    assert said == "--column score names one score and hype makes 3: leave it out"
    assert "less than 1" in message(*both, "--batch_size", 0)
    missing = tmp_path / "none.pt"
    assert f"--checkpoint {missing}" in message("--checkpoint", missing, *both[2:])
    assert f"--reference {missing}" in message(*both[:2], "--reference", missing)
    wide = save(tmp_path / "wide.pt", made_reference(9))
    assert "the model puts out 8 numbers" in message(*both[:2], "--reference", wide)
    few = save(tmp_path / "few.pt", made_state(Sizes(vocab=50)))
    assert "knows 50 tokens" in message("--checkpoint", few, *both[2:])
