"""Makes small valid inputs for the readers."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from datacomp_flyt.engines.engine import Engine

ROWS = 12
SETTINGS = {"scorer": "clip", "batch_size": 4, "arrays": ["b32_img", "b32_txt"], "file": None}

SUBSET = b"some mix"
COLUMNS = ["flyt", "clip_b32_similarity_score"]
PART_TARS = ["00000000.tar", "00000001.tar"]

Make = Callable[[Path], None]


def uids(number: int = ROWS, tag: str = "a") -> list[str]:
    return [hashlib.md5(f"{tag}{row}".encode()).hexdigest() for row in range(number)]


def embeddings() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    rows = {name: rng.normal(size=(ROWS, 3)) for name in ("b32_img", "b32_txt")}
    return {
        name: (values / np.linalg.norm(values, axis=1)[:, None]).astype(np.float32)
        for name, values in rows.items()
    }


def pool(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for tag in "ab":
        scores = {"flyt": rng.normal(size=ROWS).astype(np.float32), "extra": np.arange(ROWS)}
        columns = {
            "uid": uids(tag=tag),
            "text": [f"caption {row}" for row in range(ROWS)],
            "clip_b32_similarity_score": rng.normal(size=ROWS),
        }
        for name, table in (("metadata", columns), ("scores", {"uid": uids(tag=tag), **scores})):
            (folder / name).mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.table(table), folder / name / f"{tag}.parquet")
    np.savez(folder / "metadata" / "a.npz", **embeddings())


def arrays(folder: Path) -> None:
    np.savez(folder / "state.npz", **embeddings())


def subset(folder: Path) -> None:
    from datacomp_flyt.pool.subset import write_subset
    from tests.conftest import sorted_uids

    write_subset(folder / "subset.npy", sorted_uids(uids()), np.arange(1, ROWS + 1))


def picture(kind: str, size: int = 40) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (size, size + 9, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


NAMES = tuple(f"{row:05d}" for row in range(4))


def members(names: Sequence[str] = NAMES) -> list[tuple[str, bytes]]:
    """Make the names and contents of a tar's members, three for each sample."""
    made = []
    for sample, uid in zip(names, uids(4), strict=True):
        about = json.dumps({"uid": uid, "original_width": 3}).encode()
        files = {"jpg": picture("JPEG", 16), "txt": b"a caption", "json": about}
        made += [(f"{sample}.{name}", content) for name, content in files.items()]
    return made


def tar(folder: Path) -> None:
    write_tar(folder / "a.tar", NAMES)


def write_tar(path: Path, names: Sequence[str]) -> None:
    path.write_bytes(tar_of(members(names)))


def tar_of(files: Iterable[tuple[str, bytes]], tar_format: int = tarfile.PAX_FORMAT) -> bytes:
    """Make a tar of files, given as name and content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as archive:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def manifest(folder: Path) -> None:
    """Make a manifest of metadata, and the journal of its hashes."""
    from datacomp_flyt.pool.folder_hashes import hash_folder
    from datacomp_flyt.pool.manifest import save_manifest

    pool(folder)
    files = hash_folder(str(folder / "metadata"), "--dir", folder / "m.hashed.jsonl", 1)
    save_manifest(folder / "m.json", files)


def part(folder: Path) -> None:
    """Make the part of a subset that draws four examples twice."""
    from tests.datacomp.made_parts import write_part, write_subset_of

    draws = dict.fromkeys(uids(4), 2)
    write_part(folder / "part", write_subset_of(folder / "subset.npy", draws), draws)
    names = [f"{uid}-0" for uid in uids(4)]
    write_tar(folder / "part" / PART_TARS[0], names)


def job(most: int | None = None) -> Make:
    """Return a function that joins columns in the folder `work`, or does the first `most` items."""
    from tests.engines.here import Here, Killed

    def make(folder: Path) -> None:
        pool(folder)
        with contextlib.suppress(Killed):
            list(file_columns(folder, folder / "work", Here(most)))

    return make


def file_columns(folder: Path, work: Path, engine: Engine) -> Iterator[NDArray[np.floating]]:
    from datacomp_flyt.mixing.columns_in_files import FileColumns

    folders = [str(folder / "metadata"), str(folder / "scores")]
    table = FileColumns(*folders, 1, False, False, work, engine)
    return table.read(table.find(COLUMNS, False))


def table(folder: Path) -> None:
    tar(folder)
    status = ["success"] * 3 + ["failed"]
    pq.write_table(pa.table({"uid": uids(4), "status": status}), folder / "a.parquet")


def image(kind: str) -> Make:
    def make(folder: Path) -> None:
        (folder / "a.img").write_bytes(picture(kind))

    return make


def run(folder: Path) -> None:
    from datacomp_flyt.files.digest import file_digest

    (folder / "round_0").mkdir()
    kinds = {"clean": 0.5, "swapped": 0.5}
    diagnostics = {
        "round": 0, "draws": 9, "distinct": 7, "effective": 6.5, "effective_words": 3.0,
        "subset": {"clean_precision": 0.5, "clean_recall": 0.4, "noise_precision": 0.5,
                   "noise_recall": 0.1, "kinds": kinds},
        "auc": {"score": 0.5}, "overlap": 0.3,
    }  # fmt: skip
    (folder / "round_0" / "diagnostics.json").write_text(json.dumps(diagnostics))
    (folder / "subset.npy").write_bytes(SUBSET)
    note = {"rounds": 0, "subset": file_digest(folder / "subset.npy")}
    (folder / "finished.json").write_text(json.dumps(note))


def notes(folder: Path) -> None:
    (folder / "_settings.json").write_text(json.dumps(SETTINGS))
    (folder / "note.json").write_text(json.dumps({"key": "ab12", "seconds": 1.5}))


def labels(folder: Path) -> None:
    kinds = ["clean", "swapped", "blank"] * (ROWS // 3)
    pq.write_table(pa.table({"uid": uids(), "kind": kinds}), folder / "kinds.parquet")


def tasks(folder: Path) -> None:
    task = folder / "tasks" / "t"
    task.mkdir(parents=True)
    tar(task)
    (task / "classnames.txt").write_text("cat\ndog\ntree frog\n")
    templates = "a photo of a {c}.\nart of a {c}\n"
    (task / "zeroshot_classification_templates.txt").write_text(templates)


def config(folder: Path) -> None:
    tower = {"width": 64, "layers": 1}
    text = {"context_length": 8, "vocab_size": 99, "heads": 1, **tower}
    vision = {"image_size": 32, "patch_size": 16, **tower}
    about = {"embed_dim": 8, "vision_cfg": vision, "text_cfg": text}
    (folder / "mine.json").write_text(json.dumps(about))


def checkpoint(folder: Path) -> None:
    import torch

    from datacomp_flyt.flyt.checkpoint import save_checkpoint

    state = {"w": torch.ones(3, 2), "numbers": [1, 2.5], "names": {"a": "b"}}
    save_checkpoint(folder, 3, {"batch_size": 4}, state)


def model(kind: str, name: str) -> Make:
    """Return a function that makes a model, classifier or reference set in one of two formats."""

    def make(folder: Path) -> None:
        import torch
        from safetensors.numpy import save_file

        from datacomp_flyt.mixing import LinearMixingModel, save_mixing_model
        from datacomp_flyt.scorers.e_flyt.glu_head_file import save_glu_head
        from datacomp_flyt.scorers.linear_classifier.classifier_file import (
            LinearModel,
            save_classifier,
        )
        from tests.scorers.base.made import made_head

        path, ours = folder / name, name.endswith(".safetensors")
        rng = np.random.default_rng(0)
        ones = {"img": np.ones((2, 3), "f4"), "txt": np.ones((4, 3), "f4")}
        head = made_head(width=4, arrays=("b32_img", "b32_txt"))
        states = {
            "mixing": {"layers.0.weight": rng.normal(size=(1, 12)), "layers.0.bias": np.ones(1)},
            "glu": head.tensors("glu_model."),
            "classifier": {"weight": rng.normal(size=(1, 5)), "bias": np.ones(1)},
            "reference": ones,
        }
        if not ours:
            torch.save(
                {k: torch.from_numpy(np.array(v, "f4")) for k, v in states[kind].items()}, path
            )
        elif kind == "mixing":
            mixing = LinearMixingModel(("a", "b"), (0.5, 2.0), 1.0, True, (0.0, 1.0), (1.0, 2.0))
            save_mixing_model(mixing, path)
        elif kind == "glu":
            save_glu_head(head, path)
        elif kind == "classifier":
            row = rng.normal(size=4).astype(np.float32)
            save_classifier(LinearModel(row, np.float32(0.5), ("b32_img",)), path)
        else:
            save_file(ones, path)

    return make


def targets(name: str) -> Make:
    """Return a function that makes embeddings of unit norm in one of four formats."""

    def make(folder: Path) -> None:
        import torch
        from safetensors.numpy import save_file

        rows, path = embeddings()["b32_img"], folder / name
        if name.endswith(".npy"):
            np.save(path, rows)
        elif name.endswith(".npz"):
            np.savez(path, b32_img=rows)
        elif name.endswith(".pt"):
            torch.save({"image_features": torch.from_numpy(rows)}, path)
        else:
            save_file({"b32_img": rows}, path)

    return make
