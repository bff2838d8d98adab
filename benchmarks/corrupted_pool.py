"""The demo pool with swapped captions, so that the right answer is known for every pair.

On the web a picture occurs in many places, with different captions. Therefore the result may have
several copies of the demo pool, each with its own uids and swaps. A wrong caption then occurs once,
and the true caption occurs in most copies.

Symbols: N pairs of all copies, n pairs of one copy, D joint dimensions.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

ARCHS = ("b32", "l14")
INFORMATIVE = ("clip_b32", "clip_l14", "negclip_loss", "caption_agreement")
NOISE = ("noise_1", "noise_2", "noise_3")
_TEMPERATURE = 0.01  # for negCLIPLoss, as for OpenAI's models
_NEIGHBOURS = 5
_PAIRS_PER_TAR = 210

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class CorruptedPool:
    """The folders of the pool, and the ground truth.

    Attributes:
        shards, metadata, scores: the folders of tars, of parquet and npz files, and of scores.
        uids: the uids of all pairs [N].
        is_true: whether a pair kept its own caption [N].
        columns: the score table's columns, [N] each; the noise columns are last.
    """

    shards: Path
    metadata: Path
    scores: Path
    uids: list[str]
    is_true: NDArray[np.bool_]
    columns: dict[str, FloatArray]


@dataclass(frozen=True)
class _Pairs:
    """The demo pool: metadata rows, arrays [n, D], and the samples of the tars by uid."""

    rows: list[dict[str, Any]]
    arrays: dict[str, NDArray[np.float16]]
    samples: dict[str, dict[str, bytes]]

    def concepts(self) -> NDArray[np.str_]:
        """Return the emoji of each row [n]; both drawing styles of an emoji have one file name."""
        return np.array([Path(row["url"]).stem for row in self.rows])


def make_corrupted_pool(
    pool_dir: Path, out: Path, seed: int, share: float = 0.4, copies: int = 1
) -> CorruptedPool:
    """Swap a share of the captions of each copy among themselves, and score the pairs anew.

    Args:
        pool_dir: the demo pool.
        out: the folder to write to.
        seed: the seed of swaps, noise columns and the order in the tars.
        share: the share of pairs whose caption is another emoji's.
        copies: the number of copies of the pool.
    """
    pairs = _read(pool_dir)
    rng = np.random.default_rng(seed)
    folders = {name: out / name for name in ("shards", "metadata", "scores")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    uids: list[str] = []
    is_true, tables, samples = [], [], []
    for copy in range(copies):
        caption_of = swap_captions(pairs.concepts(), share, rng)
        named = [_md5(f"{row['url']}#{copy}") for row in pairs.rows]
        arrays = {
            name: array[caption_of] if name.endswith("_txt") else array
            for name, array in pairs.arrays.items()
        }
        scores = informative_scores(arrays)
        scores |= {name: rng.standard_normal(len(named)) for name in NOISE}
        _write_metadata(folders["metadata"] / f"{copy:04d}", pairs, named, caption_of, arrays)
        pq.write_table(pa.table({"uid": named} | scores), folders["scores"] / f"{copy:04d}.parquet")
        for row, uid in enumerate(named):
            caption = pairs.rows[caption_of[row]]["text"]
            samples.append(_renamed(pairs.samples[pairs.rows[row]["uid"]], uid, caption))
        uids += named
        is_true.append(caption_of == np.arange(len(named)))
        tables.append(scores)
    order = rng.permutation(len(samples))
    for shard, start in enumerate(range(0, len(order), _PAIRS_PER_TAR)):
        chosen = [samples[index] for index in order[start : start + _PAIRS_PER_TAR]]
        _write_tar(folders["shards"] / f"{shard:08d}.tar", shard, chosen)
    columns = {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
    return CorruptedPool(**folders, uids=uids, is_true=np.concatenate(is_true), columns=columns)


def swap_captions(
    concepts: NDArray[np.str_], share: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return for each row the row of its caption [n]; a share of them are of other concepts.

    The chosen rows form a ring in which rows of the same concept are adjacent. Each row gets the
    caption k rows ahead, where k is the size of the largest concept, so the concepts differ.
    """
    chosen = rng.choice(len(concepts), round(share * len(concepts)), replace=False)
    _, concept, sizes = np.unique(concepts[chosen], return_inverse=True, return_counts=True)
    rank = rng.permutation(len(sizes))[concept]
    ring = chosen[np.argsort(rank, kind="stable")]
    caption_of = np.arange(len(concepts))
    caption_of[ring] = np.roll(ring, -int(sizes.max()))
    return caption_of


def informative_scores(arrays: dict[str, NDArray[np.float16]]) -> dict[str, FloatArray]:
    """Return the INFORMATIVE columns [n] from embeddings such as `b32_img` and `b32_txt`.

    The columns are CLIP scores, negCLIPLoss (Wang et al. 2024) of b32 with the n pairs as one
    batch, and the mean b32 similarity of the caption to the captions of the nearest pictures.
    """
    unit = {name: _unit(array.astype(np.float64)) for name, array in arrays.items()}
    image, text = unit["b32_img"], unit["b32_txt"]
    logits = image @ text.T / _TEMPERATURE
    own = np.diag(logits)
    lost = np.logaddexp.reduce(logits, axis=1) + np.logaddexp.reduce(logits, axis=0)
    alike = image @ image.T
    np.fill_diagonal(alike, -np.inf)
    nearest = np.argsort(-alike, axis=1, kind="stable")[:, :_NEIGHBOURS]
    return {
        "clip_b32": _cosine(unit, "b32"),
        "clip_l14": _cosine(unit, "l14"),
        "negclip_loss": _TEMPERATURE * (own - lost / 2),
        "caption_agreement": np.einsum("nd,nkd->n", text, text[nearest]) / _NEIGHBOURS,
    }


def _cosine(unit: dict[str, FloatArray], arch: str) -> FloatArray:
    cosine: FloatArray = (unit[f"{arch}_img"] * unit[f"{arch}_txt"]).sum(axis=1)
    return cosine


def _unit(rows: FloatArray) -> FloatArray:
    unit: FloatArray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def _read(pool_dir: Path) -> _Pairs:
    rows: list[dict[str, Any]] = []
    parts: list[dict[str, NDArray[np.float16]]] = []
    for path in sorted((pool_dir / "metadata").glob("*.parquet")):
        rows += pq.read_table(path).to_pylist()
        with np.load(path.with_suffix(".npz")) as stored:
            parts.append({name: stored[name] for name in stored.files})
    samples: dict[str, dict[str, bytes]] = {}
    for path in sorted((pool_dir / "shards").glob("*.tar")):
        samples |= {json.loads(sample["json"])["uid"]: sample for sample in _read_tar(path)}
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return _Pairs(rows, arrays, samples)


def _read_tar(path: Path) -> list[dict[str, bytes]]:
    samples: dict[str, dict[str, bytes]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            key, _, suffix = member.name.partition(".")
            content = tar.extractfile(member)
            assert content is not None, "the demo pool's tars hold files only"
            samples.setdefault(key, {})[suffix] = content.read()
    return list(samples.values())


def _renamed(sample: dict[str, bytes], uid: str, caption: str) -> dict[str, bytes]:
    """Return a copy of a sample with another uid and another caption."""
    facts = json.loads(sample["json"]) | {"uid": uid, "caption": caption}
    return sample | {"txt": caption.encode(), "json": json.dumps(facts).encode()}


def _write_metadata(
    stem: Path,
    pairs: _Pairs,
    uids: list[str],
    caption_of: NDArray[np.int64],
    arrays: dict[str, NDArray[np.float16]],
) -> None:
    columns: dict[str, Any] = {
        "uid": uids,
        "url": [row["url"] for row in pairs.rows],
        "text": [pairs.rows[row]["text"] for row in caption_of],
    }
    for name in ("original_width", "original_height", "sha256"):
        columns[name] = [row[name] for row in pairs.rows]
    for arch in ARCHS:
        image, text = (arrays[f"{arch}_{kind}"].astype(np.float32) for kind in ("img", "txt"))
        columns[f"clip_{arch}_similarity_score"] = (image * text).sum(axis=1)
    pq.write_table(pa.table(columns), stem.with_suffix(".parquet"))
    npz: dict[str, Any] = dict(arrays)
    np.savez(stem.with_suffix(".npz"), **npz)


def _write_tar(path: Path, shard: int, samples: list[dict[str, bytes]]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for row, sample in enumerate(samples):
            for suffix in ("jpg", "txt", "json"):
                member = tarfile.TarInfo(f"{shard:05d}{row:04d}.{suffix}")
                member.size = len(sample[suffix])
                tar.addfile(member, io.BytesIO(sample[suffix]))
