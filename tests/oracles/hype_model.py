"""HYPE's encoders in float64 numpy, one example and one head at a time (its public code)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

State = Mapping[str, np.ndarray]

EPS = 2.0**-23  # the machine epsilon of float32
HEAD_WIDTH = 64


def norm(state: State, name: str, x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + EPS)
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def gelu(x: np.ndarray) -> np.ndarray:
    return x * np.vectorize(lambda value: 0.5 * (1 + math.erf(value / math.sqrt(2))))(x)


def attention(state: State, name: str, x: np.ndarray, causal: bool) -> np.ndarray:
    """Apply multi-head self-attention to x [tokens, width]."""
    width = x.shape[1]
    mixed = x @ state[f"{name}.in_proj_weight"].T + state[f"{name}.in_proj_bias"]
    heads = []
    for head in range(width // HEAD_WIDTH):
        q, k, v = (
            mixed[:, part * width + head * HEAD_WIDTH :][:, :HEAD_WIDTH] for part in range(3)
        )
        logits = q @ k.T / math.sqrt(HEAD_WIDTH)
        for row in range(len(x)):
            seen = row + 1 if causal else len(x)
            shares = np.exp(logits[row, :seen] - logits[row, :seen].max())
            logits[row] = 0
            logits[row, :seen] = shares / shares.sum()
        heads.append(logits @ v)
    joined = np.concatenate(heads, axis=1)
    return joined @ state[f"{name}.out_proj.weight"].T + state[f"{name}.out_proj.bias"]


def blocks(state: State, name: str, x: np.ndarray, causal: bool) -> np.ndarray:
    index = 0
    while f"{name}.{index}.ln_1.weight" in state:
        block = f"{name}.{index}"
        x = x + attention(state, f"{block}.attn", norm(state, f"{block}.ln_1", x), causal)
        inside = norm(state, f"{block}.ln_2", x) @ state[f"{block}.mlp.c_fc.weight"].T
        inside = gelu(inside + state[f"{block}.mlp.c_fc.bias"])
        x = x + inside @ state[f"{block}.mlp.c_proj.weight"].T + state[f"{block}.mlp.c_proj.bias"]
        index += 1
    return x


def image_vector(state: State, image: np.ndarray) -> np.ndarray:
    """Return the tangent vector of an image [3, side, side]."""
    kernel = state["visual.conv1.weight"]
    size = kernel.shape[-1]
    patches = [
        np.tensordot(kernel, image[:, top : top + size, left : left + size], 3)
        for top in range(0, image.shape[1], size)
        for left in range(0, image.shape[2], size)
    ]
    x = np.stack([state["visual.class_embedding"], *patches])
    x = norm(state, "visual.ln_pre", x + state["visual.positional_embedding"])
    x = blocks(state, "visual.transformer.resblocks", x, causal=False)
    return np.exp(state["alpha_img"]) * (norm(state, "visual.ln_post", x[0]) @ state["visual.proj"])


def text_vector(state: State, tokens: np.ndarray) -> np.ndarray:
    """Return the tangent vector of a text's tokens; its end token has the largest number."""
    x = state["token_embedding.weight"][tokens] + state["positional_embedding"]
    x = norm(state, "ln_final", blocks(state, "transformer.resblocks", x, causal=True))
    return np.exp(state["alpha_txt"]) * (x[tokens.argmax()] @ state["text_projection"])
