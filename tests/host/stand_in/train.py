"""A stand-in for DataComp's train.py: calls open_clip's trainer with the flags of a scale.

Like the original, it imports open_clip's trainer as `training`, draws shards with replacement,
resumes from the newest checkpoint, and fails with an AssertionError if training wrote none.
"""

import argparse
from pathlib import Path

from training.distributed import world_info_from_env
from training.main import main

from scale_configs import SCALE_CONFIGS


def shard_pattern(folder: Path) -> str:
    """Return a pattern for the numbered tars of a folder that open_clip expands."""
    numbers = sorted(path.stem for path in folder.glob("*.tar"))
    return f"{folder}/{{{numbers[0]}..{numbers[-1]}}}.tar"


def flags_of(settings: dict[str, object]) -> list[str]:
    """Return the flags `--name value`, or `--name` for True."""
    words = []
    for name, value in settings.items():
        flag = "--" + name.replace("_", "-")
        words.extend([flag] if value is True else [flag, str(value)])
    return words


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", required=True, choices=sorted(SCALE_CONFIGS))
    parser.add_argument("--data_dir", required=True, type=Path)
    parser.add_argument("--output_dir", required=True, type=Path)
    parser.add_argument("--exp_name")
    parser.add_argument("--precision", default="amp")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--num_checkpoints", type=int, default=5)
    parser.add_argument("--accum_freq", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log_every_n_steps", type=int, default=100)
    args = parser.parse_args()

    _, rank, world_size = world_info_from_env()
    scale = SCALE_CONFIGS[args.scale]
    name = args.exp_name or f"{args.scale}_scale"
    settings = {
        "train_data": shard_pattern(args.data_dir),
        "train_num_samples": scale["train_num_samples"] // args.num_checkpoints,
        "epochs": args.num_checkpoints,
        "batch_size": scale["batch_size"] // (world_size * args.accum_freq),
        "accum_freq": args.accum_freq,
        "model": scale["model"],
        "lr": scale["learning_rate"],
        "warmup": scale["warmup"],
        "precision": args.precision,
        "workers": args.workers,
        "seed": args.seed,
        "logs": args.output_dir,
        "name": name,
        "log_every_n_steps": args.log_every_n_steps,
        "dataset_type": "webdataset",
        "save_frequency": 0,
        "resume": "latest",
    }
    switches = (
        "dataset_resampled",
        "ddp_static_graph",
        "gather_with_grad",
        "grad_checkpointing",
        "local_loss",
        "save_most_recent",
    )
    main(flags_of(settings | dict.fromkeys(switches, True)))
    if rank == 0:
        checkpoint = args.output_dir / name / "checkpoints" / "epoch_latest.pt"
        assert checkpoint.exists(), f"no checkpoint at {checkpoint}"
        print("trained", args.scale)
