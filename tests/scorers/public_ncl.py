"""The public negCLIPLoss, NormSim, VAS and VAS-D code (ypwang61/negCLIPLoss_NormSim), run beside
ours to compare with.

NCL_DIR      a checkout of ypwang61/negCLIPLoss_NormSim at cc0042f (read only)

None of that code is copied here. Its modules cannot be imported (they import modules that are
not in the repository), so the functions named below are taken out of `baselines/vas2.py` as
syntax trees and compiled by themselves, with these differences: "cuda:N" is the CPU, the worker
processes run at once in this one, nothing is printed, and metadata comes from memory.
"""

from __future__ import annotations
import __future__

import ast
import copy
import functools
import io
import math
import os
import queue
import types
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

Floats = NDArray[np.float32]

requires_checkout = pytest.mark.skipif(
    not os.environ.get("NCL_DIR"),
    reason="NCL_DIR does not name a checkout of ypwang61/negCLIPLoss_NormSim",
)


# ---------------------------------------------------------------------------- taking functions


class OnTheCpu(ast.NodeTransformer):
    """Every f"cuda:{number}" becomes "cpu"."""

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.expr:
        start = node.values[0] if node.values else None
        if isinstance(start, ast.Constant) and str(start.value).startswith("cuda:"):
            return ast.copy_location(ast.Constant("cpu"), node)
        return node


@functools.cache
def definitions(ncl_dir: str) -> dict[str, ast.FunctionDef]:
    path = Path(ncl_dir) / "baselines" / "vas2.py"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a "\s" in one of their docstrings
        tree = OnTheCpu().visit(ast.parse(path.read_text(encoding="utf-8"), str(path)))
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


def public_functions(*names: str, **others: Any) -> SimpleNamespace:
    """These functions of vas2.py, in one module with `others` as its further globals."""
    found = definitions(os.environ["NCL_DIR"])
    tree = ast.Module([found[name] for name in names], [])
    module: dict[str, Any] = {
        "Empty": queue.Empty,
        "copy": copy,
        "math": math,
        "mp": SimpleNamespace(Queue=NoWaitQueue, Process=Inline),
        "np": np,
        "print": lambda *_: None,
        "time": SimpleNamespace(sleep=lambda _: None),
        "torch": torch,
        "tqdm": functools.partial(tqdm, file=io.StringIO()),
        **others,
    }
    code = compile(tree, "vas2.py", "exec", __future__.annotations.compiler_flag, True)
    exec(code, module)
    return SimpleNamespace(**{name: module[name] for name in names})


# ------------------------------------------------------------------------ what they run against


class NoWaitQueue(queue.Queue[Any]):
    """All that can come is there already: an empty queue is empty for good."""

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        return super().get(block=False)


class Inline:
    """A process that has done its work when `start` returns."""

    def __init__(self, target: Callable[..., None], kwargs: dict[str, Any]) -> None:
        self.work = functools.partial(target, **kwargs)

    def start(self) -> None:
        self.work()

    def is_alive(self) -> bool:
        return False

    def join(self, timeout: float | None = None) -> None:
        pass


class Watched(types.ModuleType):
    """torch, keeping what `randperm` gave and which rows `topk` chose."""

    def __init__(self) -> None:
        super().__init__("torch")
        self.permutations: list[NDArray[np.int64]] = []
        self.chosen: list[NDArray[np.int64]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def randperm(self, number: int) -> Tensor:
        permutation = torch.randperm(number)
        self.permutations.append(permutation.numpy().copy())
        return permutation

    def topk(self, values: Tensor, number: int) -> tuple[Tensor, Tensor]:
        best, places = torch.topk(values, number)
        self.chosen.append(places.numpy().copy())
        return best, places


class Metadata:
    """One metadata file with B/32 embeddings, as its filesystem and as pandas that reads it."""

    def __init__(self, images: NDArray[Any], texts: NDArray[Any]) -> None:
        self.arrays = {"b32_img": images, "b32_txt": texts}
        number = len(images)
        self.columns = {
            "uid": [f"{row:032x}" for row in range(number)],
            "clip_b32_similarity_score": np.zeros(number),
            "text": [""] * number,
            "url": [""] * number,
        }

    def open(self, path: str) -> io.BytesIO:
        file = io.BytesIO()
        np.savez(file, **self.arrays)
        file.seek(0)
        return file

    def read_parquet(self, path: str, columns: list[str], filesystem: Any) -> dict[str, Any]:
        return {name: SimpleNamespace(values=np.array(self.columns[name])) for name in columns}


def tensor(array: Any) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float32))


# ----------------------------------------------------------------------------------- the scores


def public_neg_clip_loss(
    images: NDArray[Any],
    texts: NDArray[Any],
    temperature: float,
    batch_size: int,
    num_repeats: int,
    seed: int,
) -> tuple[Floats, list[NDArray[np.int64]]]:
    """negCLIPLoss [n] of the rows of one metadata file, and the permutation [n] of each repeat.

    Their worker on one file (vas2.py:2642-2866), which gives the CLIP score and the two terms of
    the normalisation, each averaged over the repeats; they are put together as in 3172-3173.
    """
    watched, metadata = Watched(), Metadata(images, texts)
    public = public_functions("cs_new_helper", "cal_new_clip_score", torch=watched, pd=metadata)
    files, results = NoWaitQueue(), NoWaitQueue()
    files.put((metadata, "file"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        public.cs_new_helper(
            0,
            files,
            results,
            arch="b32",
            batch_size=batch_size,
            temperature=temperature,
            average_num=num_repeats,
        )
    _, clip_scores, over_texts, over_images, *_ = results.get()
    return clip_scores - (over_texts + over_images), watched.permutations


def public_norm_sim(
    images: NDArray[Any], targets: NDArray[Any], p: float, batch_size: int | None = None
) -> Floats:
    """NormSim_p [n] (vas2.py:1932-1981); their code takes 100 and more for infinity."""
    public = public_functions("cal_similarity_scores_norm")
    found = public.cal_similarity_scores_norm(
        tensor(images), tensor(targets), 0, norm=100 if p == math.inf else p, batch_size=batch_size
    )
    return found.numpy()


MOMENT = ("cal_target_variance", "cal_target_variance_worker")


def public_vas(images: NDArray[Any], targets: NDArray[Any], batch_size: int = 1000) -> Floats:
    """VAS [n] (vas2.py:180-199) with the second moment of all targets (1048-1178)."""
    public = public_functions("get_vas_gpu", *MOMENT)
    moment = public.cal_target_variance(tensor(targets), 1, batch_size, downsample_ratio=1)
    return public.get_vas_gpu(tensor(images), moment, 0).numpy()


def public_norm_sim_d(
    images: NDArray[Any],
    in_first_stage: NDArray[np.bool_],
    num_kept: int,
    num_rounds: int,
    directory: Path,
    batch_size: int = 1000,
) -> NDArray[np.int64]:
    """VAS-D (vas2.py:1615-1711): int [n], as `tests.oracles.scores.norm_sim_d` gives it.

    The second moments are of all rows, as in the VAS release, instead of a random tenth. Fewer
    than five rounds divide by zero in their code; `directory` takes the files it saves.
    """
    watched, total = Watched(), len(images)
    inside = np.flatnonzero(in_first_stage)
    second_moment = functools.partial(
        public_functions(*MOMENT).cal_target_variance, downsample_ratio=1
    )

    def load_all_data(*_: Any, **__: Any) -> tuple[Any, ...]:
        pool = tensor(images)
        return np.arange(total), None, pool, second_moment(pool, 1, batch_size)

    public = public_functions(
        "load_uids_with_vas_d_filter",
        "cal_vass_iter",
        "vas_d_worker",
        cal_target_variance=second_moment,
        load_all_data=load_all_data,
        filter_by_score=lambda *_, **__: inside,
        store_final_target_variance=lambda *_, **__: None,
        torch=watched,
    )
    left = public.load_uids_with_vas_d_filter(
        "",
        "",
        1,
        fraction=len(inside) / total,
        fraction_vas=(num_kept + 0.5) / total,
        num_iters=num_rounds,
        batch_size=batch_size,
        batch_size_vass=batch_size,
        save_path=str(directory / "kept.npy"),
    )
    fate, kept = np.zeros(total, dtype=np.int64), inside
    for number, places in enumerate(watched.chosen, start=1):
        fate[kept] = number
        kept = kept[places]
    fate[kept] = num_rounds + 1
    assert sorted(left) == sorted(kept)
    return fate


def public_two_stage(
    neg_clip_loss: Sequence[float],
    norm_sim: Sequence[float],
    first_fraction: float,
    fraction: float,
) -> NDArray[np.bool_]:
    """The rows kept by both scores (vas2.py:3081-3380), without reading or drawing anything."""
    first, total = np.asarray(neg_clip_loss), len(neg_clip_loss)
    zeros = np.zeros(total)
    loaded = (np.arange(total), first, zeros, zeros, np.asarray(norm_sim), zeros, None, None)
    public = public_functions(
        "load_uids_with_cs_new",
        "filter_by_score",
        "get_ranks_ratios",
        "get_ranks",
        ImageCaptionVisualizer=lambda **_: SimpleNamespace(vis_datasets=lambda **_: None),
        get_target_variance=lambda *_: None,
        load_all_data_cs_new=lambda *_, **__: loaded,
        os=SimpleNamespace(path=os.path, makedirs=lambda *_, **__: None),
        scipy=SimpleNamespace(stats=SimpleNamespace(spearmanr=lambda *_: None)),
    )
    kept = public.load_uids_with_cs_new(
        "", "", 1, fraction=first_fraction, fraction_vas=fraction, average_num=1
    )
    mask = np.zeros(total, dtype=np.bool_)
    mask[kept] = True
    assert mask.sum() == len(kept)
    return mask
