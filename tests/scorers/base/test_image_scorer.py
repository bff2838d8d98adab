"""Scoring of tars: which rows there are, which are NaN, and that batches change nothing."""

from __future__ import annotations

import io
import json
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")

from PIL import Image
from torch import Tensor

from datacomp_flyt.clip.inference import decode_threads
from datacomp_flyt.engines.messages import pack, unpack
from datacomp_flyt.scorers.base.image_scorer import NOT_FINITE, ImageScorer
from datacomp_flyt.tars.pairs import BAD_UID, DUPLICATE
from datacomp_flyt.tars.samples import BAD_IMAGE, NO_CAPTION, NO_IMAGE, NO_UID
from tests.conftest import refusal
from tests.flyt.tars import jpg, pair, plain, tokenize, uid_of, write_tar
from tests.oracles.selection import parse_uid, uid_array
from tests.scorers.base.image_tars import png, score, scorer_of


class ShadeAndNumber(ImageScorer):
    """Of `tars.pair`: the mean shade of the image, and the number in the caption."""

    columns = ("shade", "number")

    def load(self, device: str) -> None:
        super().load(device)
        self.transform, self.tokenize = plain, tokenize
        self.sizes: list[int] = []

    def score_batch(self, images: Tensor, texts: Tensor) -> Tensor:
        assert torch.is_inference_mode_enabled()
        self.sizes.append(len(images))
        return torch.stack([images.mean((1, 2, 3)), texts[:, 0].float()], 1)


def shade_scorer(*words: object, **flags: str) -> ShadeAndNumber:
    return scorer_of(ShadeAndNumber, *words, **flags)


def uids(*numbers: int) -> np.ndarray:
    return uid_array([parse_uid(uid_of(number)) for number in numbers])


def test_rows_are_the_samples_in_the_order_of_the_tar(tmp_path: Path) -> None:
    order = [7, 2, 90, 14, 0]
    found = score(shade_scorer(), write_tar(tmp_path / "a.tar", map(pair, order)))
    assert found.uids.dtype == np.dtype("u8,u8")
    assert np.array_equal(found.uids, uids(*order))
    assert found.values.dtype == np.float32
    assert found.values[:, 1].tolist() == order
    assert np.allclose(found.values[:, 0], order, atol=1)  # JPEG
    assert not found.counts


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("batch_size", "sizes"), [(1, [1] * 10), (4, [4, 4, 2]), (10, [10]), (256, [10])]
)
def test_batches_and_threads(
    tmp_path: Path, batch_size: int, sizes: list[int], threads: int
) -> None:
    tar = write_tar(tmp_path / "a.tar", map(pair, range(10)))
    scorer = shade_scorer("--batch_size", batch_size, "--decode_threads", threads)
    found = score(scorer, tar)
    assert scorer.sizes == sizes
    assert found.values[:, 1].tolist() == list(range(10))
    assert np.array_equal(found.uids, uids(*range(10)))


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


@pytest.mark.parametrize("threads", [1, 2])
def test_what_has_no_score(tmp_path: Path, threads: int) -> None:
    """Samples keep their row where they have a uid, and are counted by reason."""
    rows = [pair(number) for number in range(12)]
    rows[1]["jpg"] = b"not an image"
    rows[2]["jpg"] = cut(jpg(size=64))
    rows[3].pop("txt")
    rows[4]["txt"] = b"\xff\xfe caption 4"
    rows[5].pop("jpg")
    rows[6].pop("json")
    rows[7]["json"] = b"{"
    rows[8]["json"] = json.dumps({"uid": None}).encode()
    rows[9]["json"] = json.dumps({"uid": "g" * 32}).encode()
    rows[10]["json"] = json.dumps({"uid": uid_of(0).upper()}).encode()
    tar = write_tar(tmp_path / "a.tar", rows)
    scorer = shade_scorer("--batch_size", 4, "--decode_threads", threads)
    found = score(scorer, tar)
    assert np.array_equal(found.uids, uids(0, 1, 2, 3, 4, 5, 11))
    assert np.isnan(found.values).all(1).tolist() == [False, True, True, True, True, True, False]
    assert found.values[[0, 6], 1].tolist() == [0, 11]
    assert found.counts == {
        BAD_IMAGE: 2,
        NO_CAPTION: 2,
        NO_IMAGE: 1,
        NO_UID: 3,
        BAD_UID: 1,
        DUPLICATE: 1,
    }


def test_a_batch_without_a_usable_image(tmp_path: Path) -> None:
    rows = [pair(number) | {"jpg": b"no"} for number in range(4)] + [pair(4)]
    scorer = shade_scorer("--batch_size", 2)
    found = score(scorer, write_tar(tmp_path / "a.tar", rows))
    assert scorer.sizes == [1]
    assert found.counts == {BAD_IMAGE: 4}
    assert found.values[4, 1] == 4


def test_other_image_formats_and_modes(tmp_path: Path) -> None:
    rows = []
    for number, (kind, mode) in enumerate(
        [("PNG", "L"), ("PNG", "P"), ("PNG", "RGBA"), ("WEBP", "RGB"), ("JPEG", "CMYK")]
    ):
        file = io.BytesIO()
        Image.new("RGB", (10, 10), (80, 80, 80)).convert(mode).save(file, kind)
        row = pair(number)
        del row["jpg"]
        rows.append(row | {"jpg" if kind == "JPEG" else kind.lower(): file.getvalue()})
    found = score(shade_scorer(), write_tar(tmp_path / "a.tar", rows))
    assert np.allclose(found.values[:, 0], 80, atol=3)


@pytest.mark.parametrize("share", [0.6, 2.0])
@pytest.mark.parametrize("threads", [1, 2])
def test_decompression_bombs_are_undecodable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float, threads: int
) -> None:
    """Beyond its limit Pillow warns, beyond twice its limit it raises."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(10_000 / (2 * share)))
    bomb = pair(1)
    del bomb["jpg"]
    rows = [pair(0), bomb | {"png": png(100, 100)}, pair(2)]
    tar = write_tar(tmp_path / "a.tar", rows)
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # as in a worker; pytest's are stricter
        found = score(shade_scorer("--decode_threads", threads), tar)
    assert found.counts == {BAD_IMAGE: 1}
    assert np.isnan(found.values[:, 1]).tolist() == [False, True, False]


def test_what_else_pillow_warns_of_is_no_error(tmp_path: Path) -> None:
    """Of damaged EXIF, say; pytest makes warnings errors."""

    def transform(image: Image.Image) -> Tensor:
        warnings.warn_explicit("Corrupt EXIF", UserWarning, "x.py", 1, module="PIL.ExifTags")
        return plain(image)

    scorer = shade_scorer()
    scorer.load("cpu")
    scorer.transform = transform
    found = scorer.score(str(write_tar(tmp_path / "a.tar", [pair(5)])), {})
    assert found.values[0, 1] == 5


def test_scores_that_are_not_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def some(self: ShadeAndNumber, images: Tensor, texts: Tensor) -> Tensor:
        return torch.tensor([[1.0, 2.0], [float("inf"), 3.0], [float("nan")] * 2])

    monkeypatch.setattr(ShadeAndNumber, "score_batch", some)
    found = score(shade_scorer(), write_tar(tmp_path / "a.tar", map(pair, range(3))))
    assert np.isnan(found.values).tolist() == [[False, False], [True, False], [True, True]]
    assert found.counts == {NOT_FINITE: 2}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("member", [0, 9, -3])
def test_damaged_tars(tmp_path: Path, member: int, threads: int) -> None:
    """Cut inside an image, as a broken download is."""
    whole = write_tar(tmp_path / "whole.tar", map(pair, range(8))).read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as tar:
        image = tar.getmembers()[member]
    assert image.name.endswith(".jpg")
    path = tmp_path / "cut.tar"
    path.write_bytes(whole[: image.offset_data + image.size // 2])
    message = refusal(score, shade_scorer("--decode_threads", threads, "--batch_size", 2), path)
    assert str(path) in message
    assert "download it again" in message


def test_missing_tars_and_other_files(tmp_path: Path) -> None:
    path = tmp_path / "none.tar"
    assert str(path) in refusal(score, shade_scorer(), path)
    path.write_bytes(b"not a tar at all" * 100)
    assert str(path) in refusal(score, shade_scorer(), path)


@pytest.mark.parametrize("stored", [None, {}, {"uid": 5}, {"uid": "short"}, [1]])
def test_a_tar_without_any_uid(tmp_path: Path, stored: object) -> None:
    rows = [pair(number) for number in range(3)]
    for row in rows:
        row["json"] = json.dumps(stored).encode()
    path = write_tar(tmp_path / "a.tar", rows)
    message = refusal(score, shade_scorer(), path)
    assert str(path) in message
    assert "--save_additional_columns" in message


def test_an_empty_tar(tmp_path: Path) -> None:
    found = score(shade_scorer(), write_tar(tmp_path / "a.tar", []))
    assert found.uids.shape == (0,)
    assert found.values.shape == (0, 2)
    assert not found.counts


@pytest.mark.parametrize("flag", ["--batch_size", "--decode_threads"])
@pytest.mark.parametrize("value", [0, -3])
def test_numbers_that_are_not_positive(flag: str, value: int) -> None:
    assert f"{flag} {value}" in refusal(shade_scorer, flag, value)


def test_precision_is_what_products_are_computed_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dtypes = []

    def some(self: ShadeAndNumber, images: Tensor, texts: Tensor) -> Tensor:
        product = images.flatten(1) @ images.flatten(1).T
        dtypes.append(product.dtype)
        return product[:, :2]

    monkeypatch.setattr(ShadeAndNumber, "score_batch", some)
    tar = write_tar(tmp_path / "a.tar", map(pair, range(3)))
    for precision in ("fp32", "bf16"):
        assert score(shade_scorer(precision=precision), tar).values.dtype == np.float32
    assert dtypes == [torch.float32, torch.bfloat16]


def test_scorers_are_pickled_before_they_are_loaded(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", map(pair, range(3)))
    copy: Callable[..., object] = unpack(pack(shade_scorer("--batch_size", 2)))
    assert score(copy, tar).values[:, 1].tolist() == [0, 1, 2]


def test_a_gpu_gets_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datacomp_flyt.clip.inference.default_num_workers", lambda: 17)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert decode_threads(None, torch.device("cuda:1")) == 4
    assert decode_threads(None, torch.device("cpu")) == 1
    assert decode_threads(9, torch.device("cpu")) == 9
