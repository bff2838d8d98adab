"""The public HYPE code, imported from a checkout to compare with.

HYPE_DIR     a checkout of naver-ai/hype at 2ab480d (read only)

None of that code is copied here. `hyperbolic.py` reads `reference.pt` from its own folder when it
is imported, so it is copied beside one of ours into a test's folder, and run from there.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

requires_checkout = pytest.mark.skipif(
    not os.environ.get("HYPE_DIR"), reason="HYPE_DIR does not name a checkout of naver-ai/hype"
)


def public_module(name: str, folder: Path | None = None) -> Any:
    """`model`, `tokenizer` or `hyperbolic`, from the checkout or another folder."""
    path = (folder or Path(os.environ["HYPE_DIR"])) / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"public_hype_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    written, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated names of torch
            spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = written
    return module


def public_geometry(folder: Path, reference: dict[str, Tensor]) -> Any:
    """The module `hyperbolic` with a reference set."""
    shutil.copy(Path(os.environ["HYPE_DIR"]) / "hyperbolic.py", folder)
    torch.save(reference, folder / "reference.pt")
    return public_module("hyperbolic", folder)
