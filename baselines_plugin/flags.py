"""The flags of our methods, in DataComp's style, added to whatever parser the host has."""

from __future__ import annotations

import argparse
from typing import Any

from baselines_plugin.registry import METHODS
from baselines_plugin.sampling import FRACTION_OF, SAMPLINGS
from datacomp_flyt.datacomp.scales import SCALES
from datacomp_flyt.engines.flags import ENGINE_FLAGS
from datacomp_flyt.tars.flags import add_available_arguments
from datacomp_flyt.threads import default_num_workers

# Flags that DataComp's parser has too. Ours are used where there is no host.
_HOST_FLAGS: dict[str, dict[str, Any]] = {
    "--metadata_dir": {
        "required": True,
        "help": "folder (local or cloud) with the pool's metadata: parquet, with or without npz",
    },
    "--save_path": {"required": True, "help": "local path of the .npy file to write"},
    "--fraction": {
        "type": float,
        "help": "share of the pool to keep, highest scores first, for --sampling top_fraction",
    },
    "--num_workers": {
        "type": int,
        "default": default_num_workers(),
        "help": "threads, and workers of --engine (default: all cores); the result does not depend "
        "on them",
    },
}

_FLAGS: dict[str, dict[str, Any]] = {
    "--scores_dir": {
        "help": "folder (local or cloud) of score tables: parquet files with a uid column and "
        "columns of scores, joined to the pool on the uid"
    },
    "--score": {
        "metavar": "COLUMN",
        "help": "the column to sample from: one of --scores_dir, or of the metadata such as "
        "clip_l14_similarity_score",
    },
    "--score_columns": {
        "nargs": "+",
        "metavar": "COLUMN",
        "help": "columns to add up (default: FLYT's twelve); of neg_clip_loss_norm_sim, its two",
    },
    "--fraction_of": {
        "choices": FRACTION_OF,
        "help": "the examples that --fraction and --first_fraction are shares of: those that can "
        "be selected, which have a score and, with --available or --shards_dir, an image "
        "(available, the default), or all rows of --metadata_dir (pool)",
    },
    "--first_fraction": {
        "type": float,
        "help": "neg_clip_loss_norm_sim: share that the first stage keeps (0.3), see --fraction_of",
    },
    "--scoring_model": {
        "help": "m_flyt: 'paper' for Table 2 of the FLYT paper (standardised over this pool), a "
        ".safetensors file of ours, or the published mflyt.pt; flyt: a .safetensors file of ours"
    },
    "--run_dir": {
        "help": "self_filtering: the folder of a finished run, --out of `datacomp-flyt self_filter`"
    },
    "--save_scoring_model": {
        "metavar": "FILE",
        "help": "also save the mixing model, with the means and standard deviations of this pool, "
        "as .safetensors: to use medium scale's statistics at small scale",
    },
    "--weight_ratio": {
        "type": float,
        "help": "in_weighted_sum: largest over smallest weight (default: 8)",
    },
    "--imagenet_accuracies": {
        "nargs": "+",
        "metavar": "COLUMN=VALUE",
        "help": "in_weighted_sum: accuracy by column (default: the paper's Table 2)",
    },
    "--manifest": {
        "metavar": "FILE",
        "help": "of `datacomp-flyt manifest`: refuse a --metadata_dir with files that are missing, "
        "additional or of another size than it says (hashes: `datacomp-flyt manifest --check`)",
    },
    "--work_dir": {
        "metavar": "DIR",
        "help": "for pools larger than memory: keep what is as long as the pool in files there "
        "(32 bytes an example and 8 a column), with the same result; the same command goes on "
        "where it was killed",
    },
    "--engine": {
        **ENGINE_FLAGS["--engine"],
        "help": "with --work_dir, what sorts the pool: processes of this machine (default), or a "
        "Ray cluster, all of whose nodes see --work_dir (a shared file system) and the pool's "
        "files (there too, or s3://...)",
    },
    "--ray_address": {
        **ENGINE_FLAGS["--ray_address"],
        "help": "of an existing cluster (host:port, or 'auto'), which gets a worker on each CPU; "
        "without it Ray is started here",
    },
    "--sampling": {
        "choices": list(SAMPLINGS),
        "help": "scores to subset: scs (Soft Cap Sampling, the default), hcs (Hard Cap Sampling), "
        "no_cap (with replacement) or top_fraction",
    },
    "--scale": {
        "choices": list(SCALES),
        "help": "sets --num_samples to what training sees at this scale, and for scs also "
        "--repetition_penalty and --sampling_batch_size to the paper's",
    },
    "--num_samples": {
        "type": int,
        "help": "draws in all, so entries of the subset (scs, hcs, no_cap)",
    },
    "--repetition_penalty": {
        "type": float,
        "help": "scs: alpha, taken off an example's score each time it is drawn",
    },
    "--sampling_batch_size": {
        "type": int,
        "help": "scs: G, draws between penalties (default: 1, exact and fastest; the paper's "
        "with --scale)",
    },
    "--frequency_limit": {"type": int, "help": "hcs: beta, most draws of one example"},
    "--keep_ties": {
        "action": "store_true",
        "help": "top_fraction: keep all examples that share the last score, as clip_score does",
    },
    "--seed": {"type": int, "default": 0, "help": "of the draws (default: 0)"},
    "--save_scores": {
        "metavar": "FILE",
        "help": "also save the final scores: parquet with uid and a column named as the method",
    },
    "--allow_missing_scores": {
        "action": "store_true",
        "help": "mix the columns that there are, where the method wants more",
    },
    "--allow_partial_scores": {
        "action": "store_true",
        "help": "leave out examples that have no score",
    },
    "--drop_nonfinite": {
        "action": "store_true",
        "help": "leave out examples with a score, or for flyt an embedding, that is NaN, infinite "
        "or missing",
    },
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add our flags, and those of the host's that it does not have."""
    there = parser._option_string_actions
    host_group = parser.add_argument_group("pool and subset")
    for flag, options in _HOST_FLAGS.items():
        if flag not in there:
            host_group.add_argument(flag, **options)
    names = "; ".join(f"{method.name}: {method.help}" for method in METHODS.values())
    group = parser.add_argument_group("FLYT", f"Methods (--name). {names}.")
    add_available_arguments(group.add_argument)
    for flag, options in _FLAGS.items():
        group.add_argument(flag, **options)
