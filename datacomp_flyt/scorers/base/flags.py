"""Flags that several scorers have."""

from __future__ import annotations

import argparse


def add_arch(parser: argparse.ArgumentParser) -> None:
    """Which embeddings of the npz."""
    parser.add_argument(
        "--arch", default="b32", help="prefix of the npz arrays: b32 (default), l14"
    )


def add_renormalize(parser: argparse.ArgumentParser) -> None:
    """What to do with embeddings of another length than 1."""
    parser.add_argument(
        "--renormalize", action="store_true", help="bring embeddings to length 1 first"
    )


def add_precision(parser: argparse.ArgumentParser) -> None:
    """Of matrix products."""
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16"),
        default="fp32",
        help="of the factors of matrix products (default: fp32)",
    )


def add_targets(parser: argparse.ArgumentParser) -> None:
    """What a pool is compared with."""
    parser.add_argument(
        "--targets",
        nargs="+",
        metavar="FILE",
        help="target embeddings of the same model: .npy, .npz, .pt, .safetensors, folders of npz",
    )
