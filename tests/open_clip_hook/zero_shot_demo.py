"""Evaluates a checkpoint on the demo's downstream set with open_clip's zero-shot evaluation.

    python zero_shot_demo.py epoch_latest.pt [uids.txt]

Prints one JSON line: accuracies `top1` and `top5` over 210 classes by open_clip's code, and
`pool_loss`, the contrastive loss of the demo pool's pairs in batches of 60, all with the evaluation
transform. With a file of uids, one per line, it also prints `their_loss` and `others_loss`, the
losses of these pairs and of the others. `-` evaluates the untrained model.
"""

from __future__ import annotations

import importlib
import io
import json
import sys
import tarfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from PIL import Image
from seeded_trainer import CONFIGS, trainer
from torch import Tensor

from datacomp_flyt import demo

DEMO = Path(str(demo.__file__)).parent
MODEL = "hook-tiny"


def read_tars(folder: Path, preprocess: Any) -> tuple[Tensor, list[str], list[str]]:
    """Return images [n, 3, H, W], the caption or label of each, and uids if there are any."""
    images, texts, uids = [], [], []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                content = tar.extractfile(member)
                assert content is not None
                if member.name.endswith((".jpg", ".webp")):
                    image = Image.open(io.BytesIO(content.read())).convert("RGB")
                    images.append(preprocess(image))
                elif member.name.endswith((".txt", ".cls")):
                    texts.append(content.read().decode())
                elif member.name.endswith(".json"):
                    uids.append(json.load(content)["uid"])
    return torch.stack(images), texts, uids


def classifier(model: Any, names: list[str], module: Any, args: Namespace) -> Tensor:
    """Return class embeddings [D, classes] from the function that this release has."""
    templates = [lambda name: name]  # the demo's one template is {c}
    if hasattr(open_clip, "build_zero_shot_classifier"):
        tokenizer = open_clip.get_tokenizer(MODEL)
        return open_clip.build_zero_shot_classifier(model, tokenizer, names, templates)
    return module.zero_shot_classifier(model, names, templates, args)


def accuracy(output: Tensor, target: Tensor, topk: tuple[int, ...] = (1,)) -> list[float]:
    """Compute open_clip's accuracy, whose own code up to 3.3.0 fails with NumPy 2.5."""
    hits = output.topk(max(topk), 1).indices == target[:, None]
    return [float(hits[:, :k].sum()) for k in topk]


@torch.no_grad()
def contrastive_loss(model: Any, images: Tensor, texts: list[str]) -> float:
    """Return the mean loss over fixed batches of 60."""
    order, losses = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0)), []
    for rows in order.split(60):
        tokens = open_clip.get_tokenizer(MODEL)([texts[row] for row in rows])
        image_features = F.normalize(model.encode_image(images[rows]), dim=-1)
        text_features = F.normalize(model.encode_text(tokens), dim=-1)
        logits = model.logit_scale.exp() * image_features @ text_features.T
        targets = torch.arange(len(rows))
        losses += [F.cross_entropy(logits, targets), F.cross_entropy(logits.T, targets)]
    return float(torch.stack(losses).mean())


def evaluate(checkpoint: str, some_uids: set[str]) -> dict[str, float]:
    torch.manual_seed(0)
    pretrained = "" if checkpoint == "-" else checkpoint
    model, _, preprocess = open_clip.create_model_and_transforms(MODEL, pretrained=pretrained)
    model.eval()
    module = importlib.import_module(trainer().__name__.replace("main", "zero_shot"))
    module.accuracy = accuracy  # type: ignore[attr-defined]
    args = Namespace(
        device="cpu", precision="fp32", distributed=False, batch_size=70, model=MODEL, rank=0
    )
    names = (DEMO / "downstream" / "classnames.txt").read_text().splitlines()
    images, labels, _ = read_tars(DEMO / "downstream", preprocess)
    targets = torch.tensor([int(label) for label in labels])
    run = getattr(module, "run", None) or module.run_zero_shot_classifier
    batches = list(zip(images.split(70), targets.split(70), strict=True))
    top1, top5 = run(model, classifier(model, names, module, args), batches, args)

    images, captions, uids = read_tars(DEMO / "pool" / "shards", preprocess)
    parts = {"pool": list(range(len(uids)))}
    if some_uids:
        parts["their"] = [row for row, uid in enumerate(uids) if uid in some_uids]
        parts["others"] = [row for row, uid in enumerate(uids) if uid not in some_uids]
    losses = {
        f"{name}_loss": contrastive_loss(model, images[rows], [captions[row] for row in rows])
        for name, rows in parts.items()
    }
    return {"top1": top1, "top5": top5, **losses}


if __name__ == "__main__":
    torch.set_num_threads(1)
    open_clip.add_model_config(CONFIGS)
    checkpoint, *files = sys.argv[1:]
    print(json.dumps(evaluate(checkpoint, {u for f in files for u in Path(f).read_text().split()})))
