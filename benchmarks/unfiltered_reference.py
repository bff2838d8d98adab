"""Trains the tiny reference model by CLIP on a whole pool, as the paper does for M-FLYT."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import torch
from open_clip.loss import ClipLoss

from datacomp_flyt.clip.models import load_clip_model
from datacomp_flyt.exits import Parser
from datacomp_flyt.flyt.data import upstream_loader
from datacomp_flyt.flyt.lookahead_adamw import decays
from datacomp_flyt.flyt.schedule import learning_rate
from datacomp_flyt.flyt.stream_settings import StreamSettings
from datacomp_flyt.tars.shards import list_shards

BATCH, RATE, WARMUP = 64, 1e-3, 50


def main() -> None:
    """Parse the flags, train, and write a state dict for `--reference_init`."""
    parser = Parser(description=__doc__)
    parser.add_argument("--train_data", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_steps", type=int, default=300)
    args = parser.parse_args()
    clip = load_clip_model("flyt-tiny", "random", "reference", args.seed)
    shards = list_shards(args.train_data, "--train_data")
    settings = StreamSettings(clip.transform, BATCH, 1, args.seed, 0, shuffle_buffer=(500, 100))
    named = list(clip.model.named_parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for n, p in named if decays(n, p)], "weight_decay": 0.2},
            {"params": [p for n, p in named if not decays(n, p)], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.98),
        eps=1e-6,
    )
    loss = ClipLoss()
    with upstream_loader(shards, clip.tokenize, settings) as loader:
        for step, batch in enumerate(islice(loader, args.num_steps)):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, RATE, WARMUP, args.num_steps)
            optimizer.zero_grad()
            loss(*clip.model(batch.images, batch.texts)).backward()
            optimizer.step()
    torch.save(clip.model.state_dict(), args.output)


if __name__ == "__main__":
    main()
