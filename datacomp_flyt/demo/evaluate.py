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
    """Return the pictures [n, 3, H, W], labels [n] and captions of labelled tars."""
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
    """Evaluate one model.

    Args:
        clip: the model.
        folder: labelled tars, `classnames.txt` and `zeroshot_classification_templates.txt`.

    Returns:
        accuracy: the zero-shot accuracy, by the class whose prompts' mean embedding is nearest, as
            on ImageNet (open_clip's own classifier); retrieval: recall at 1, the mean of picture to
            caption and caption to picture, in galleries with one picture of each caption. Both are
            0 to 1.
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
    hits = []
    for rows in zip(*rows_of.values(), strict=False):  # the k-th gallery: k-th picture of each
        similarity = features[list(rows)] @ texts.T
        own = torch.arange(len(texts))
        hits += [similarity.argmax(1) == own, similarity.argmax(0) == own]
    return torch.cat(hits).double().mean().item()


def write_evaluation(
    *, evaluation_dir: Path, checkpoint: Sequence[str], out: Path, model: str = MODEL
) -> None:
    """Evaluate checkpoints, print their figures and write them to a JSON file.

    Args:
        evaluation_dir: see `evaluate`.
        checkpoint: words NAME=FILE.
        out: the JSON file, with METRICS by name.
        model: open_clip's name of the model.

    Raises:
        InputError: a checkpoint is not of the model, or `out` cannot be written or is an input.
    """
    inputs = {"evaluation_dir": evaluation_dir, "checkpoint": checkpoint, "model": model}
    check_outputs([Output("--out", check_save_path(out, "--out"))], inputs)
    results = {}
    for word in checkpoint:
        name, _, path = word.partition("=")
        clip = load_clip_model(model, path, ("--model", "--checkpoint"))
        results[name] = evaluate(clip, evaluation_dir)
        say("  ".join([name, *(f"{metric} {results[name][metric]:.3f}" for metric in METRICS)]))
    with atomic_write(out) as file:
        file.write(json.dumps(results, indent=1).encode())


def main() -> None:
    """Parse the flags and call `write_evaluation`."""
    parser = Parser(description=__doc__)
    parser.add_argument("--evaluation_dir", type=Path, required=True)
    parser.add_argument("--checkpoint", nargs="+", required=True, metavar="NAME=FILE")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--out", type=Path, required=True)
    write_evaluation(**vars(parser.parse_args()))
