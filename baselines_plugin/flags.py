"""The flags of the selection methods, in DataComp's style, for any parser."""

from __future__ import annotations

import argparse
import contextlib
from typing import Any

from datacomp_flyt.engines.flags import ENGINE_FLAGS
from datacomp_flyt.errors import InputError
from datacomp_flyt.selection.registry import describe_methods, find_sampling, sampling_names
from datacomp_flyt.selection.sampling import Sampling
from datacomp_flyt.tars.flags import add_available_arguments
from datacomp_flyt.threads import default_num_workers

# Flags that DataComp's parser has too. Ours are used where there is no host.
_HOST_FLAGS: dict[str, dict[str, Any]] = {
    "--metadata_dir": {
        "required": True,
        "help": "folder (local or cloud) with the pool's metadata: parquet, with or without npz",
    },
    "--save_path": {"required": True, "help": "local path of the .npy file to write"},
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
    "--column": {
        "metavar": "COLUMN",
        "help": "the column to sample from: one of --scores_dir, or of the metadata such as "
        "clip_l14_similarity_score",
    },
    "--score_columns": {
        "nargs": "+",
        "metavar": "COLUMN",
        "help": "columns to add up (default: FLYT's twelve); for neg_clip_loss_norm_sim, its two",
    },
    "--first_fraction": {
        "type": float,
        "help": "neg_clip_loss_norm_sim: share that the first stage keeps (0.3), see --fraction_of",
    },
    "--scoring_model": {
        "help": "m_flyt: 'paper' for Table 2 of the FLYT paper (standardised over this pool), a "
        ".safetensors file of ours, or the published mflyt.pt; e_flyt: a .safetensors file of ours"
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
        "help": "in_weighted_sum: accuracy by column (default: those of the paper's Table 2)",
    },
    "--manifest": {
        "metavar": "FILE",
        "help": "file of `datacomp-flyt manifest`: refuse a --metadata_dir with files that are "
        "missing, additional or of another size than the manifest says (hashes: `datacomp-flyt "
        "manifest --check`)",
    },
    "--work_dir": {
        "metavar": "DIR",
        "help": "for pools larger than memory: keep arrays that are as long as the pool in files "
        "there (32 bytes an example and 8 a column), with the same result; the same command "
        "resumes after a kill",
    },
    "--engine": {
        **ENGINE_FLAGS["--engine"],
        "help": "sorts the pool of --work_dir: processes of this machine (default), or a "
        "Ray cluster, all of whose nodes see --work_dir (a shared file system) and the pool's "
        "files (there too, or s3://...)",
    },
    "--ray_address": {
        **ENGINE_FLAGS["--ray_address"],
        "help": "address of an existing cluster (host:port, or 'auto'), which gets a worker on "
        "each CPU; without it Ray is started here",
    },
    "--seed": {"type": int, "default": 0, "help": "seed of the draws (default: 0)"},
    "--save_scores": {
        "metavar": "FILE",
        "help": "also save the final scores: parquet with uid and a column named as the method",
    },
    "--allow_missing_scores": {
        "action": "store_true",
        "help": "mix the columns that exist where the method has more",
    },
    "--allow_partial_scores": {
        "action": "store_true",
        "help": "leave out examples that have no score",
    },
    "--drop_nonfinite": {
        "action": "store_true",
        "help": "leave out examples with a score, or for e_flyt an embedding, that is NaN, "
        "infinite or missing",
    },
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add our flags to a parser, except for those that it has already."""
    existing = parser._option_string_actions
    host_group = parser.add_argument_group("pool and subset")
    for flag, options in _HOST_FLAGS.items():
        if flag not in existing:
            host_group.add_argument(flag, **options)
    names = "; ".join(f"{name}: {text}" for name, text in describe_methods().items())
    group = parser.add_argument_group("FLYT", f"Methods (--name). {names}.")
    add_available_arguments(group.add_argument)
    for flag, options in _FLAGS.items():
        group.add_argument(flag, **options)
    group.add_argument("--score", dest="column", help=argparse.SUPPRESS)  # its former name
    samplings = _usable_samplings()
    texts = "; ".join(f"{sampling.name}: {sampling.help}" for sampling in samplings)
    group.add_argument(
        "--sampling",
        type=_sampling_name,
        choices=sampling_names(),
        help=f"how scores become a subset (default: scs). {texts}",
    )
    for sampling in samplings:
        for name, flag_options in sampling.flags.items():
            if f"--{name}" not in existing:
                group.add_argument(f"--{name}", **flag_options)


def flag_names() -> set[str]:
    """Return the names of all flags of `add_arguments`, without dashes."""
    names = {flag.removeprefix("--") for flag in (*_HOST_FLAGS, *_FLAGS)}
    names |= {"available", "shards_dir", "sampling"}
    return names.union(*(sampling.flags for sampling in _usable_samplings()))


def _usable_samplings() -> list[Sampling]:
    """Return all sampling methods, except for those of packages that cannot be imported."""
    usable = []
    for name in sampling_names():
        with contextlib.suppress(InputError):  # reported when its name is given
            usable.append(find_sampling(name))
    return usable


def _sampling_name(text: str) -> str:
    """Check that a sampling method can be used, before flags that it has not added are refused."""
    if text in sampling_names():
        try:
            find_sampling(text)
        except InputError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    return text
