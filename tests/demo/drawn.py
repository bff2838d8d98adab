"""Drawings that encode their own digit and index, and their decoding from pictures.

Drawing n of digit d shows the number 400 d + n + 1 in twelve bits: blocks of ink in three rows of
four, which survive a shift, tinted paper, the camera's noise and JPEG.
"""

from __future__ import annotations

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from datacomp_flyt.demo import noisy_pool

SIDE = 28
HEIGHT, WIDTH = SIDE // 3, SIDE // 4  # of a block
INKS = {"red": (220, 40, 40), "green": (30, 150, 60), "blue": (40, 70, 220)}


def coded_sheets() -> NDArray[np.float64]:
    """Return coded drawings [10 digits, 400 drawings, 28, 28]."""
    sheets = np.zeros((10, 400, SIDE, SIDE))
    for digit in range(10):
        for index in range(400):
            for bit in range(12):
                if 400 * digit + index + 1 & 1 << bit:
                    top, left = bit // 4 * HEIGHT, bit % 4 * WIDTH
                    sheets[digit, index, top : top + HEIGHT, left : left + WIDTH] = 1
    return sheets


def use(patch: pytest.MonkeyPatch, sheets: NDArray[np.float64]) -> None:
    """Draw pools with these sheets instead of MNIST."""
    patch.setattr(noisy_pool, "sheets", lambda: sheets)


def read(picture: NDArray[np.uint8]) -> tuple[int, int, str]:
    """Return the digit, the index of the drawing and the ink of a coded picture [32, 32, 3]."""
    code, inked = 0, []
    for bit in range(12):
        # two pixels of padding; a shift by two still leaves the middle inside the block
        row, column = 2 + bit // 4 * HEIGHT + HEIGHT // 2, 2 + bit % 4 * WIDTH + WIDTH // 2
        block = picture[row - 1 : row + 2, column - 1 : column + 2].reshape(-1, 3).mean(0)
        if block.min() < 150:  # paper has 220 and more in each colour, ink less in two of them
            code |= 1 << bit
            inked.append(block)
    colour = np.mean(inked, 0)
    ink = min(INKS, key=lambda name: float(np.abs(colour - INKS[name]).sum()))
    digit, index = divmod(code - 1, 400)
    return digit, index, ink


def pixels(stored: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(stored)) as picture:
        return np.array(picture)


def spread(picture: NDArray[np.uint8]) -> float:
    """Return the largest standard deviation of a colour channel."""
    return float(picture.reshape(-1, 3).std(0).max())
