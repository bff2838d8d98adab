"""Content of upstream and downstream batches, and bad examples."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("webdataset")

from datacomp_flyt.flyt.data import (
    DownstreamBatch,
    UpstreamBatch,
    downstream_loader,
    upstream_loader,
)
from datacomp_flyt.flyt.downstream_tasks import DownstreamTask, open_tasks
from datacomp_flyt.flyt.streams import concatenate
from datacomp_flyt.flyt.uid_features import UidFeatures, embedding_features
from datacomp_flyt.tars.shards import list_shards
from tests.conftest import REPOSITORY, refusal
from tests.flyt.tars import (
    features_of,
    jpg,
    pair,
    settings_of,
    tokenize,
    uid_of,
    write_pairs,
    write_tar,
    write_task,
)

DEMO = REPOSITORY / "datacomp_flyt" / "demo" / "pool"


def upstream(
    shards: list[str], features: UidFeatures | None = None, steps: int = 1, **changes: object
) -> UpstreamBatch:
    loader = upstream_loader(shards, tokenize, settings_of(**changes), features)  # type: ignore
    with loader:
        return concatenate(list(itertools.islice(loader, steps)))


def downstream(
    tasks: list[DownstreamTask], *arguments: object, steps: int = 1, **changes: object
) -> list[DownstreamBatch]:
    loader = downstream_loader(tasks, settings_of(**changes), *arguments)  # type: ignore
    with loader:
        return list(itertools.islice(loader, steps))


def one_tar(folder: Path, *extra: dict[str, bytes], good: int = 8) -> list[str]:
    samples = [*extra, *map(pair, range(good))]
    return [str(write_tar(folder / "00000000.tar", samples))]


# ------------------------------------------------------------------------------- upstream


def test_image_caption_and_features_belong_together(tmp_path: Path) -> None:
    shards = write_pairs(tmp_path)
    batch = upstream(shards, features_of(range(40)), steps=5)
    numbers = batch.texts[:, 0]
    assert batch.images.dtype == batch.features.dtype == torch.float32
    assert batch.texts.dtype == torch.int64
    assert torch.equal(batch.features, torch.stack([numbers, -numbers], 1).float())
    shades = batch.images.mean((1, 2, 3))
    assert torch.allclose(shades, numbers.float(), atol=2)  # JPEG is lossy


def test_uid_is_read_from_the_json(tmp_path: Path) -> None:
    misleading = {
        "jpg": jpg(7),
        "txt": b"caption 7",
        "json": json.dumps({"uid": uid_of(7).upper(), "key": uid_of(3)}).encode(),
    }
    shards = [str(write_tar(tmp_path / f"{uid_of(5)}.tar", [misleading]))]
    batch = upstream(shards, features_of([3, 5, 7]), batch_size=1)
    assert batch.features.tolist() == [[7.0, -7.0]]


def test_demo_pool_against_direct_reading() -> None:
    shards = list_shards(str(DEMO / "shards"), "--shards")
    features = embedding_features(str(DEMO / "metadata"), progress=False)
    captions: list[str] = []

    def remember(texts: list[str]) -> torch.Tensor:
        captions.extend(texts)
        return torch.zeros(len(texts), 1, dtype=torch.int64)

    settings = settings_of(16, 2, transform=lambda image: torch.zeros(3, 2, 2))
    with upstream_loader(shards, remember, settings, features) as loader:
        batch = next(iter(loader))
    assert len(captions) == 16
    assert batch.skipped == {}
    rows = demo_rows()
    for text, row in zip(captions, batch.features, strict=True):
        assert any(torch.allclose(row, wanted, atol=1e-6) for wanted in rows[text])


def demo_rows() -> dict[str, list[torch.Tensor]]:
    """Read the embeddings of each caption from the npz files."""
    import numpy as np
    import pyarrow.parquet as pq

    rows: dict[str, list[torch.Tensor]] = {}
    for path in sorted((DEMO / "metadata").glob("*.parquet")):
        arrays = np.load(path.with_suffix(".npz"))
        for index, text in enumerate(pq.read_table(path)["text"].to_pylist()):
            parts = [arrays[name][index].astype(np.float64) for name in ("b32_img", "b32_txt")]
            unit = np.concatenate([part / np.linalg.norm(part) for part in parts])
            rows.setdefault(text, []).append(torch.from_numpy(unit).float())
    return rows


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_other_image_formats(tmp_path: Path, kind: str) -> None:
    sample = {"txt": b"caption 1", kind.lower(): jpg(90, kind=kind)}
    shards = [str(write_tar(tmp_path / "0.tar", [sample]))]
    assert abs(upstream(shards, batch_size=1).images.mean().item() - 90) < 3


BAD = {
    "uid not in the feature table": {**pair(1000)},
    "no uid in its json": {**pair(0), "json": b'{"key": "1"}'},
    "image cannot be decoded": {**pair(0), "jpg": jpg(size=40)[:-300]},
    "no image": {"txt": b"caption 0", "json": pair(0)["json"]},
    "no caption": {"jpg": jpg(), "json": pair(0)["json"]},
}


@pytest.mark.parametrize("reason", BAD)
def test_bad_examples_are_left_out_and_counted(tmp_path: Path, reason: str) -> None:
    shards = one_tar(tmp_path, BAD[reason])
    batch = upstream(shards, features_of(range(8)), steps=5, shuffle_buffer=(1, 1))
    assert batch.skipped == {reason: 5}
    assert batch.texts[:, 0].tolist() == 5 * list(range(8))


@pytest.mark.parametrize("broken", [b"", b"{", b"[]", b'{"uid": 5}', b"\xff"])
def test_broken_json_is_no_uid(tmp_path: Path, broken: bytes) -> None:
    shards = one_tar(tmp_path, {**pair(0), "json": broken})
    batch = upstream(shards, features_of(range(8)), steps=2)
    assert batch.skipped.keys() <= {"no uid in its json"}
    assert upstream(shards, None).skipped == {}  # uids are not read without features


def test_no_image_is_decoded_before_its_uid_is_found(tmp_path: Path) -> None:
    shards = one_tar(tmp_path, {**pair(1000), "jpg": b"no image"})
    batch = upstream(shards, features_of(range(8)), steps=3)
    assert "image cannot be decoded" not in batch.skipped


def test_a_pool_of_undecodable_images_ends_the_run(tmp_path: Path) -> None:
    shards = one_tar(tmp_path, *[{**pair(index), "jpg": b"x"} for index in range(8)], good=0)
    message = refusal(upstream, shards)
    assert "1,000 examples in a row are left out (image cannot be decoded)" in message


def test_invalid_uids_are_unknown_uids(tmp_path: Path) -> None:
    features = features_of(range(8))
    for uid in ("", "-" + uid_of(1)[1:], uid_of(1)[:-1], uid_of(1) + "0", "g" * 32, "é"):
        assert features.find(uid) == -1
    assert [features.values[features.find(uid_of(n)), 0] for n in range(8)] == list(range(8))


def test_a_batch_larger_than_the_data_is_refused(tmp_path: Path) -> None:
    shards = write_pairs(tmp_path, 2, 4)
    assert "2 shards hold 8 usable examples, fewer than the 9" in refusal(
        upstream, shards, batch_size=18, num_streams=2
    )


# ------------------------------------------------------------------------------- downstream


def test_labels_and_captions(tmp_path: Path) -> None:
    labels = [0, 2, 1, 1, 2, 0, 2, 0]
    for name in ("cls", "label"):
        write_task(tmp_path / name, labels, label_name=name)
        (batch,) = downstream(open_tasks(str(tmp_path / name)), "mixed", tokenize)
        assert batch.labels.dtype == batch.captions.dtype == torch.int64
        assert batch.images.shape == (8, 3, 10, 10)
        assert batch.labels.tolist() == [labels[index] for index in batch.captions[:, 0]]
    (batch,) = downstream(open_tasks(str(tmp_path / "cls")))
    assert batch.captions is None


def test_labels_of_tasks_have_consecutive_ranges(tmp_path: Path) -> None:
    write_task(tmp_path / "a", [0, 1, 1, 0], ["x", "y"])
    write_task(tmp_path / "b", [2, 2, 2, 2])
    tasks = open_tasks(str(tmp_path))
    for weights in ("mixed", "balanced"):
        batches = downstream(tasks, weights, batch_size=4, steps=10)
        assert {label for batch in batches for label in batch.labels.tolist()} == {0, 1, 4}


@pytest.mark.parametrize("label", [3, -1, "owl", "1.5", ""])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_wrong_labels_are_refused(tmp_path: Path, label: int | str, num_workers: int) -> None:
    folder = write_task(tmp_path / "birds", [0, 1, label, 2])
    message = refusal(downstream, open_tasks(str(folder)), batch_size=2, num_workers=num_workers)
    assert f"{folder / '0000.tar'} key 000002 has label" in message
    assert "3 class names" in message or "number of a class" in message


def test_no_label_is_counted(tmp_path: Path) -> None:
    folder = write_task(tmp_path, [0, 1, 2])
    write_tar(folder / "0000.tar", [{"jpg": jpg(), "cls": b"1"}] * 3 + [{"jpg": jpg()}])
    (batch,) = downstream(open_tasks(str(folder)), batch_size=3)
    assert batch.skipped["no label"] > 0
    write_tar(folder / "0000.tar", [{"jpg": jpg()}])
    assert "no label: 1" in refusal(downstream, open_tasks(str(folder)))


@pytest.mark.parametrize(("weights", "share"), [("mixed", 0.2), ("balanced", 0.5)])
def test_task_weights_decide_the_shares_of_tasks(
    tmp_path: Path, weights: str, share: float
) -> None:
    write_task(tmp_path / "large", [0] * 80)
    write_task(tmp_path / "small", [2] * 20)
    batches = downstream(
        open_tasks(str(tmp_path)), weights, batch_size=100, num_streams=2, steps=12
    )
    counts = Counter(label for batch in batches for label in batch.labels.tolist())
    total = counts.total()
    assert set(counts) == {0, 5}
    # "mixed" draws whole tars of four examples
    spread = share * (1 - share) / total * (4 if weights == "mixed" else 1)
    assert abs(counts[5] / total - share) < 4 * spread**0.5


def test_unknown_weights_are_refused(tmp_path: Path) -> None:
    tasks = open_tasks(str(write_task(tmp_path, [0])))
    message = refusal(downstream, tasks, "equal")
    assert message == "--task_weights is 'equal', wanted one of mixed, balanced"


def test_an_empty_balanced_task_is_named(tmp_path: Path) -> None:
    write_task(tmp_path / "full", [0] * 8)
    write_task(tmp_path / "hollow", [0])
    write_tar(tmp_path / "hollow" / "0000.tar", [])
    message = refusal(downstream, open_tasks(str(tmp_path)), "balanced", batch_size=20)
    assert "task 'hollow': no example of its 1 shards" in message
