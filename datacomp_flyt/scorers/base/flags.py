"""Flags that several scorers share."""

from __future__ import annotations

import argparse


def add_arch(parser: argparse.ArgumentParser) -> None:
    """Add `--arch`, the prefix of npz arrays."""
    parser.add_argument(
        "--arch", default="b32", help="prefix of the npz arrays: b32 (default), l14"
    )


def add_renormalize(parser: argparse.ArgumentParser) -> None:
    """Add `--renormalize`."""
    parser.add_argument(
        "--renormalize", action="store_true", help="scale embeddings to unit norm first"
    )


def add_targets(parser: argparse.ArgumentParser) -> None:
    """Add `--targets`."""
    parser.add_argument(
        "--targets",
        nargs="+",
        metavar="FILE",
        help="target embeddings of the same model: .npy, .npz, .pt, .safetensors, folders of npz",
    )
