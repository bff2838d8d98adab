"""Settings of CLIP inference: precision, decoding threads and image limits."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import torch
from PIL import Image

from datacomp_flyt.threads import default_num_workers


@contextlib.contextmanager
def inference(device: torch.device, precision: str) -> Iterator[None]:
    """Disable gradients, and compute products in float32 without TF32, or in bfloat16.

    Args:
        precision: `fp32` or `bf16`.
    """
    with (
        torch.inference_mode(),
        torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        ),
        torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"),
    ):
        yield


def refuse_decompression_bombs() -> None:
    """Make images beyond Pillow's limit of pixels undecodable, and silence its other warnings.

    This applies to the whole process, since warning filters do not belong to a thread.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")
    warnings.simplefilter("error", Image.DecompressionBombWarning)


def decode_threads(asked: int | None, device: torch.device) -> int:
    """Return a worker's decoding threads: `asked`, else 1 on a CPU, or a GPU's share of cores."""
    if asked is not None:
        return asked
    if device.type == "cpu":
        return 1
    return max(1, default_num_workers() // max(1, torch.cuda.device_count()))
