"""Make a reference set for HYPE's scores, for a model that the authors' own set does not fit.

`python -m datacomp_flyt.scorers.hype.reference --checkpoint FILE --shards_dir TARS --num_examples N
--out FILE.safetensors` embeds pairs of a pool's tars: all usable pairs of a random tar, then of
another, until there are N. The authors' code does not show how they drew theirs.
"""

from __future__ import annotations

from datacomp_flyt.exits import Parser, run_main, running

if __name__ == "__main__":  # the imports below run where Ctrl-C has a handler
    run_main("datacomp_flyt.scorers.hype.reference")

import contextlib
import random
from collections import Counter
from collections.abc import Generator, Sequence
from functools import partial
from pathlib import Path

import open_clip
import torch
from torch import Tensor

from datacomp_flyt.clip.flags import add_image_arguments, check_image_arguments
from datacomp_flyt.clip.inference import decode_threads, inference, refuse_decompression_bombs
from datacomp_flyt.errors import InputError
from datacomp_flyt.files.output_files import atomic_write, check_save_path
from datacomp_flyt.installation import needs_extra
from datacomp_flyt.pool.outputs import Output, check_outputs
from datacomp_flyt.progress import Progress
from datacomp_flyt.scorers.hype.model import HypeModel, load_hype_model
from datacomp_flyt.tars.pairs import read_pairs
from datacomp_flyt.tars.shards import list_shards


def make_reference(
    model: HypeModel,
    shards: Sequence[str],
    num_examples: int,
    seed: int = 0,
    batch_size: int = 256,
    threads: int = 1,
) -> dict[str, Tensor]:
    """Embed pairs of tars: tangent vectors `img` and `txt`, float32 [num_examples, width] each.

    Args:
        model: the model, on the device that computes.
        shards: addresses of tars.
        seed: the seed of the order of tars.
        batch_size: images in a batch.
        threads: decoding threads, which do not change the result.

    Raises:
        InputError: a tar is damaged, or there are fewer usable pairs.
    """
    order = random.Random(seed).sample(sorted(shards), len(shards))
    device = model.clip.curvature.device
    tokenize = partial(open_clip.tokenize, context_length=model.context_length)
    vectors: dict[str, list[Tensor]] = {"img": [], "txt": []}
    left = num_examples
    refuse_decompression_bombs()
    batches = _batches(order, model.image_size, batch_size, threads)
    bar = Progress("reference set", num_examples, "pair")
    with contextlib.closing(batches), bar:
        for images, texts in batches:
            images, texts = images[:left], texts[:left]
            with inference(device, "fp32"):
                vectors["img"].append(model.encode_image(images.to(device)).cpu())
                vectors["txt"].append(model.encode_text(tokenize(texts).to(device)).cpu())
            left -= len(texts)
            bar.update(len(texts))
            if not left:
                return {name: torch.cat(parts) for name, parts in vectors.items()}
    raise InputError(
        f"--num_examples is {num_examples:,} and the {len(shards):,} tars have "
        f"{num_examples - left:,} usable pairs: give fewer, or more tars"
    )


def _batches(
    shards: Sequence[str], image_size: int, batch_size: int, threads: int
) -> Generator[tuple[Tensor, list[str]], None, None]:
    transform = open_clip.image_transform(image_size, is_train=False)
    for shard in shards:
        for batch in read_pairs(shard, transform, batch_size, threads, Counter()):
            usable = [(pair.image, pair.text) for pair in batch if pair.image is not None]
            if usable:
                yield torch.stack([image for image, _ in usable]), [text for _, text in usable]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command in this module's docstring."""
    parser = Parser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="weights")
    parser.add_argument("--shards_dir", required=True, metavar="TARS", help="tars of the pool")
    parser.add_argument("--num_examples", type=int, required=True, metavar="N", help="pairs")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help=".safetensors")
    parser.add_argument("--seed", type=int, default=0, help="of the choice (default: 0)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda (default: cpu)")
    add_image_arguments(parser)
    with running(parser.prog):
        args = parser.parse_args(argv)
        with needs_extra():
            from safetensors.torch import save
        check_image_arguments(args.batch_size, args.decode_threads)
        if args.num_examples < 1:
            raise InputError(f"--num_examples {args.num_examples} is no set: give 1 or more")
        if args.out.suffix != ".safetensors":
            raise InputError(f"--out {args.out} is no .safetensors file: name it so")
        out = check_save_path(args.out, "--out")
        check_outputs([Output("--out", out)], vars(args))
        if args.device.startswith("cuda") and not torch.cuda.is_available():
            raise InputError(f"--device {args.device} is not there: give cpu")
        shards = list_shards(args.shards_dir, "--shards_dir")
        model = load_hype_model(args.checkpoint, "checkpoint").to(args.device)
        threads = decode_threads(args.decode_threads, torch.device(args.device))
        reference = make_reference(
            model, shards, args.num_examples, args.seed, args.batch_size, threads
        )
        with atomic_write(args.out) as file:
            file.write(save({name: rows.contiguous() for name, rows in reference.items()}))
