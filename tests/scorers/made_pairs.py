"""Unit embeddings of images and captions, small ones with known scores and random ones."""

from __future__ import annotations

import numpy as np

F = np.array([[1, 2, 2], [2, 1, 0], [0, 3, 4], [1, 1, 1]], float)


G = np.array([[1, 2, 1], [2, 0, 1], [1, 3, 4], [1, -1, 1]], float)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def pairs(number: int, width: int = 16, seed: int = 0) -> dict[str, np.ndarray]:
    """Unit rows in float32; captions are like their images."""
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(number, width))
    texts = images + rng.normal(size=(number, width))
    return {"b32_img": unit(images).astype("f4"), "b32_txt": unit(texts).astype("f4")}


def leaning(number: int, width: int = 12, seed: int = 0) -> np.ndarray:
    """Unit rows with a common direction and clusters, as CLIP's are."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(6, width)) + 1.5
    rows = centres[rng.integers(0, 6, number)] + rng.normal(size=(number, width))
    return unit(rows).astype(np.float32)
