"""All readers of files: a small valid input, a call, and a check of the result."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.hostile import valid
from tests.hostile.jobs import JOB_READERS, in_memory, streamed
from tests.hostile.models import MODEL_READERS
from tests.hostile.reader import PICTURE, Check, Reader


def _pool(folder: Path) -> Any:
    from datacomp_flyt.pool.pool import read_pool

    pool = read_pool(str(folder / "metadata"), 1, progress=False)
    return [pool.high, pool.low, *pool.positions]


def _check_pool(result: Any) -> str | None:
    high, low, *positions = result
    rises = (high[1:] > high[:-1]) | ((high[1:] == high[:-1]) & (low[1:] > low[:-1]))
    if not rises.all():
        return "uids that are not sorted or not unique"
    if sorted(np.concatenate(positions).tolist()) != list(range(len(high))):
        return "positions are no permutation"
    return None


def _columns(partial: bool) -> Callable[[Path], Any]:
    return functools.partial(in_memory, partial=partial)


def _check_columns(partial: bool) -> Check:
    def check(result: Any) -> str | None:
        number, *columns = result
        for values in columns:
            if len(values) != number or values.dtype.kind != "f":
                return "a column of another length or type"
            if np.isinf(values).any() or not partial and np.isnan(values).any():
                return "scores that are not finite"
        return None

    return check


def _captions(folder: Path) -> Any:
    from datacomp_flyt.pool.parquet import open_shards
    from datacomp_flyt.report.sample import read_sample

    sample = read_sample(open_shards(str(folder / "metadata"), "--m", 1), 1000, 0, 1)
    captions = None if sample.captions is None else sample.captions.tolist()
    return [sample.pool.high, sample.pool.low, captions]


def _check_captions(result: Any) -> str | None:
    high, _, captions = result
    if captions is not None and (
        len(captions) != len(high) or not all(isinstance(c, str) for c in captions)
    ):
        return "invalid captions"
    return None


def _embeddings(folder: Path) -> Any:
    from datacomp_flyt.pool.embeddings import iter_embeddings
    from datacomp_flyt.pool.parquet import open_shards

    (shard, _) = open_shards(str(folder / "metadata"), "--m", 1)
    return [
        np.array(shard.num_rows),
        np.concatenate([*iter_embeddings(shard, ["b32_img", "b32_txt"])]),
    ]


def _check_embeddings(result: Any) -> str | None:
    number, rows = result
    nan = np.isnan(rows)
    if len(rows) != number or np.isinf(rows).any() or (nan.any(1) != nan.all(1)).any():
        return "rows that are neither finite nor NaN throughout"
    return None


def _subset(folder: Path) -> Any:
    from datacomp_flyt.pool.subset import read_subset

    return list(read_subset(folder / "subset.npy"))


def _check_subset(result: Any) -> str | None:
    uids, repeats = result
    high, low = uids["f0"], uids["f1"]
    rises = (high[1:] > high[:-1]) | ((high[1:] == high[:-1]) & (low[1:] > low[:-1]))
    if not len(uids) or len(uids) != len(repeats) or not rises.all() or (repeats < 1).any():
        return "no sorted examples with repeats"
    return None


def _tar(folder: Path) -> Any:
    from collections import Counter

    from datacomp_flyt.clip.inference import refuse_decompression_bombs
    from datacomp_flyt.tars.pairs import read_pairs

    refuse_decompression_bombs()
    counts: Counter[str] = Counter()
    found = []
    for batch in read_pairs(str(folder / "a.tar"), _transform(), 4, 1, counts):
        for pair in batch:
            image = None if pair.image is None else pair.image.numpy()
            found.append([pair.uid, image, pair.text])
    return [found, sorted(counts.items())]


def _transform() -> Any:
    import open_clip

    return open_clip.image_transform(32, is_train=False)


def _check_tar(result: Any) -> str | None:
    for uid, image, _ in result[0]:
        if len(uid) != 32 or uid != uid.lower() or set(uid) - set("0123456789abcdef"):
            return f"uid {uid!r}"
        if image is not None and image.shape != (3, 32, 32):
            return "an image of another size"
    return None


def _tar_uids(folder: Path) -> Any:
    from datacomp_flyt.pool.uids import encode_uids
    from datacomp_flyt.tars.uids import uids_of_tar

    found = uids_of_tar(str(folder / "a.tar"))
    return [encode_uids(found.uids).to_pylist(), bool(found.problem)]


def _check_tar_uids(result: Any) -> str | None:
    return None if all(isinstance(uid, str) for uid in result[0]) else "uids that are no text"


def _blocks(folder: Path) -> Any:
    """Return the members, and whether they equal webdataset's."""
    from webdataset.tariterators import tar_file_expander

    from datacomp_flyt.open_clip_hook.tar_blocks import iter_members

    def members(read: Callable[..., Any]) -> Any:
        errors: list[object] = []
        with (folder / "a.tar").open("rb") as stream:
            source = {"url": "a.tar", "stream": stream}
            found = [
                [member["fname"], member["data"]]
                for member in read([source], lambda error: errors.append(type(error)) or True)
            ]
        return [found, list(map(str, errors))]

    ours = members(iter_members)
    return [ours, ours == members(tar_file_expander)]


def _check_blocks(result: Any) -> str | None:
    return None if result[1] else "another answer than webdataset's"


def _image(folder: Path) -> Any:
    from datacomp_flyt.tars.samples import decode

    return decode((folder / "a.img").read_bytes(), _transform()).numpy()


def _check_image(result: Any) -> str | None:
    fine = result.shape == (3, 32, 32) and np.isfinite(result).all()
    return None if fine else "an image of another size"


def _tasks(folder: Path) -> Any:
    from datacomp_flyt.flyt.downstream_tasks import open_tasks, sample_prompts

    tasks = open_tasks(str(folder / "tasks"))
    prompts = sample_prompts(tasks, np.random.default_rng(0))
    return [[list(task.class_names), list(task.templates)] for task in tasks] + [prompts]


def _check_tasks(result: Any) -> str | None:
    return None if result[-1] and all(result[-1]) else "empty prompts"


def _settings(folder: Path) -> Any:
    from datacomp_flyt.files.settings_file import check_settings

    check_settings(folder, valid.SETTINGS, "give another --out")
    return json.loads((folder / "_settings.json").read_bytes())


def _check_settings(result: Any) -> str | None:
    """Compare the settings; a setting of null may be missing."""
    noted = {key: value for key, value in result.items() if value is not None}
    wanted = {key: value for key, value in valid.SETTINGS.items() if value is not None}
    return None if noted == wanted else "other settings were not refused"


def _steps(folder: Path) -> Any:
    from datacomp_flyt.steps import read_note

    return read_note(folder / "note.json")


def _check_steps(result: Any) -> str | None:
    if not result:
        return None
    fine = isinstance(result["key"], str) and np.isfinite(float(result["seconds"]))
    return None if fine else f"{result}"


def _final(folder: Path) -> Any:
    from datacomp_flyt.self_filtering.finalize import final_subset

    return final_subset(folder).read_bytes()


def _check_final(result: Any) -> str | None:
    return None if result == valid.SUBSET else "another subset"


def _page(folder: Path) -> Any:
    from datacomp_flyt.self_filtering.rounds_page import write_page

    return "<script" in write_page(folder, 0).read_text()


def _check_page(result: Any) -> str | None:
    return "a script in the page" if result else None


def _labels(folder: Path) -> Any:
    from datacomp_flyt.self_filtering.labels import read_labels

    return list(read_labels(folder / "kinds.parquet"))


def _check_labels(result: Any) -> str | None:
    uids, kinds = result
    if not len(uids) or len(uids) != len(kinds) or not all(isinstance(k, str) for k in kinds):
        return "labels without a kind"
    return "a uid twice" if len(np.unique(uids)) != len(uids) else None


def _config(folder: Path) -> Any:
    import open_clip.factory as factory

    from datacomp_flyt.clip.models import known_name

    name = known_name(str(folder / "mine.json"), "--model")
    config = factory._MODEL_CONFIGS.pop(name)
    factory._MODEL_CONFIG_PATHS.remove(folder / "mine.json")
    return [name, config]


def _check_config(result: Any) -> str | None:
    return None if isinstance(result[1], dict) else "a model that is no dict"


def _stored(folder: Path) -> Any:
    from datacomp_flyt.scorers.base.passes import StoredArrays

    return [[name, array] for name, array in sorted(StoredArrays(folder)["state"].items())]


def _compared(result: Any) -> str | None:
    """Accept any result: the call or `Reader.exact` compares it."""
    return None


_METADATA, _SCORES = "metadata/b.parquet", "scores/b.parquet"
_IMAGES = {
    name: Reader(valid.image(kind), "a.img", _image, _check_image, memory=PICTURE)
    for name, kind in (("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP"))
}
READERS: dict[str, Reader] = {
    "pool": Reader(valid.pool, _METADATA, _pool, _check_pool, table=True),
    "npz of the pool": Reader(valid.pool, "metadata/a.npz", _pool, _check_pool, exact=True),
    "scores": Reader(valid.pool, _SCORES, _columns(False), _check_columns(False), table=True),
    "partial scores": Reader(valid.pool, _SCORES, _columns(True), _check_columns(True), table=True),
    "captions": Reader(valid.pool, _METADATA, _captions, _check_captions, table=True),
    "embeddings": Reader(valid.pool, "metadata/a.npz", _embeddings, _check_embeddings, exact=True),
    "subset": Reader(valid.subset, "subset.npy", _subset, _check_subset),
    "tar": Reader(valid.tar, "a.tar", _tar, _check_tar, memory=PICTURE),
    "uids of a tar": Reader(valid.tar, "a.tar", _tar_uids, _check_tar_uids),
    "blocks of a tar": Reader(valid.tar, "a.tar", _blocks, _check_blocks),
    "streamed scores": Reader(valid.pool, _SCORES, streamed, _compared, table=True),
    "streamed pool": Reader(valid.pool, _METADATA, streamed, _compared, table=True),
    "table of a tar": Reader(valid.table, "a.parquet", _tar_uids, _check_tar_uids, table=True),
    "page": Reader(valid.run, "round_0/diagnostics.json", _page, _check_page),
    "finished": Reader(valid.run, "finished.json", _final, _check_final),
    "settings": Reader(valid.notes, "_settings.json", _settings, _check_settings),
    "steps": Reader(valid.notes, "note.json", _steps, _check_steps),
    "labels": Reader(valid.labels, "kinds.parquet", _labels, _check_labels, table=True),
    "classnames": Reader(valid.tasks, "tasks/t/classnames.txt", _tasks, _check_tasks),
    "templates": Reader(
        valid.tasks, "tasks/t/zeroshot_classification_templates.txt", _tasks, _check_tasks
    ),
    "model config": Reader(valid.config, "mine.json", _config, _check_config),
    "state of passes": Reader(valid.arrays, "state.npz", _stored, _compared, exact=True),
    **_IMAGES,
    **MODEL_READERS,
    **JOB_READERS,
}
