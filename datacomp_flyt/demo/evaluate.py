"""Zero-shot accuracy and retrieval of CLIP checkpoints on the tour's evaluation set.

    python -m datacomp_flyt.demo.evaluate --evaluation_dir E --checkpoint NAME=epoch_1.pt ... \\
        --out results.json
"""

from __future__ import annotations

from datacomp_flyt.exits import Parser, run_main

if __name__ == "__main__":  # all else is imported where Ctrl-C has a handler
    run_main("datacomp_flyt.demo.evaluate")

import io
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from PIL import Image
from torch import Tensor

from datacomp_flyt.clip.models import ClipModel, load_clip_model
from datacomp_flyt.demo.noisy_pool import MODEL
from datacomp_flyt.files.output_files import atomic_write, check_save_path
from datacomp_flyt.pool.outputs import Output, check_outputs
from datacomp_flyt.streams import say
from datacomp_flyt.tars.samples import read_tar

METRICS = ("accuracy", "retrieval")


def read_labelled(
    folder: Path, transform: Callable[[Any], Tensor]
) -> tuple[Tensor, Tensor, list[str]]:
    """Pictures [n, 3, H, W], labels [n] and captions of labelled tars."""
    pictures, labels, captions = [], [], []
    for path in sorted(folder.glob("*.tar")):
        for sample in read_tar(str(path)):
            with Image.open(io.BytesIO(sample["jpg"])) as picture:
                pictures.append(transform(picture.convert("RGB")))
            labels.append(int(sample["cls"]))
            captions.append(sample["txt"].decode())
    return torch.stack(pictures), torch.tensor(labels), captions


@torch.inference_mode()
def evaluate(clip: ClipModel, folder: Path) -> dict[str, float]:
    """Both figures of one model, between 0 and 1.

    accuracy: of the class whose prompts' mean embedding is nearest, as CLIP is evaluated on
        ImageNet (open_clip's own classifier).
    retrieval: recall at 1, the mean of picture to caption and caption to picture, in galleries
        that hold one picture of each caption.
    """
    model: Any = clip.model.eval()
    pictures, labels, captions = read_labelled(folder, clip.eval_transform)
    names = (folder / "classnames.txt").read_text().splitlines()
    prompts = (folder / "zeroshot_classification_templates.txt").read_text().splitlines()
    templates = [lambda name, prompt=prompt: prompt.format(c=name) for prompt in prompts]
    classifier = open_clip.build_zero_shot_classifier(model, clip.tokenize, names, templates)
    features = torch.cat([model.encode_image(part, normalize=True) for part in pictures.split(500)])
    correct = (features @ classifier).argmax(1) == labels
    return {
        "accuracy": correct.double().mean().item(),
        "retrieval": _retrieval(model, clip.tokenize, features, captions),
    }


def _retrieval(
    model: Any, tokenize: Callable[[list[str]], Tensor], features: Tensor, captions: Sequence[str]
) -> float:
    rows_of = defaultdict(list)
    for row, caption in enumerate(captions):
        rows_of[caption].append(row)
    texts = model.encode_text(tokenize(list(rows_of)), normalize=True)
    found = []
    for rows in zip(*rows_of.values(), strict=False):  # the k-th gallery: k-th picture of each
        similarity = features[list(rows)] @ texts.T
        own = torch.arange(len(texts))
        found += [similarity.argmax(1) == own, similarity.argmax(0) == own]
    return torch.cat(found).double().mean().item()


def main() -> None:
    """Write a JSON file: for each checkpoint its figures."""
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--evaluation_dir", type=Path, required=True)
    parser.add_argument("--checkpoint", nargs="+", required=True, metavar="NAME=FILE")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    check_outputs([Output("--out", check_save_path(args.out, "--out"))], vars(args))
    results = {}
    for given in args.checkpoint:
        name, _, file = given.partition("=")
        clip = load_clip_model(args.model, file, ("--model", "--checkpoint"))
        results[name] = evaluate(clip, args.evaluation_dir)
        found = (f"{metric} {results[name][metric]:.3f}" for metric in METRICS)
        say("  ".join([name, *found]))
    with atomic_write(args.out) as file:
        file.write(json.dumps(results, indent=1).encode())
