"""Make a metadata folder, with embeddings and CLIP scores, of downloaded image tars."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

from datacomp_flyt.clip.flags import add_image_arguments
from datacomp_flyt.engines.flags import add_engine_arguments, report_failures
from datacomp_flyt.errors import InputError
from datacomp_flyt.installation import needs_extra

_ENCODER = re.compile(r"(?P<prefix>\w+)=(?P<model>[^:]+):(?P<checkpoint>.+)")
_OPTIONS = (
    "shards_dir", "metadata_dir", "dtype", "precision", "batch_size", "decode_threads",
    "make_uids", "engine", "ray_address", "num_workers", "device", "retries",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    parser.add_argument(
        "--shards_dir",
        required=True,
        metavar="TARS",
        help="tars of img2dataset, each json with a uid: a folder, a pattern such as "
        "{00000000..00012895}.tar, or an address",
    )
    parser.add_argument(
        "--metadata_dir",
        required=True,
        metavar="FOLDER",
        help="write here; a --metadata_dir for scoring and selection afterwards",
    )
    parser.add_argument(
        "--encoder",
        action="append",
        metavar="PREFIX=MODEL:CHECKPOINT",
        help="a CLIP model for PREFIX_img, PREFIX_txt and clip_PREFIX_similarity_score; can be "
        "repeated. CHECKPOINT is a file or one of open_clip's weights tags, as in "
        "b32=ViT-B-32-quickgelu:openai and l14=ViT-L-14-quickgelu:openai, which are DataComp's own",
    )
    parser.add_argument(
        "--dtype",
        choices=("float16", "float32"),
        default="float16",
        help="type of the npz arrays (default: %(default)s)",
    )
    parser.add_argument(
        "--make_uids",
        action="store_true",
        help="tars of another dataset, such as ImageNet or CC12M, for targets and classifiers: "
        "uids are made of shard and key, and captions may be missing",
    )
    add_image_arguments(parser)
    add_engine_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Embed; the exit code tells whether tars failed, see `report_failures`."""
    with needs_extra("train"):
        from datacomp_flyt.clip.embed import embed
    flags = vars(args)
    options = {name: flags[name] for name in _OPTIONS}
    report = embed(encoders=_encoders(args.encoder), **options)
    num_finished = report.num_finished_before + report.num_embedded
    return report_failures(
        report.failed, "embed", num_finished=num_finished, num_workers=args.num_workers
    )


def _encoders(words: list[str] | None) -> dict[str, tuple[str, str]]:
    """Parse PREFIX=MODEL:CHECKPOINT words."""
    from datacomp_flyt.clip.embed import EXAMPLE

    encoders: dict[str, tuple[str, str]] = {}
    for word in words or ():
        match = _ENCODER.fullmatch(word)
        if match is None:
            raise InputError(f"--encoder {word} is not of the form that it takes: {EXAMPLE}")
        prefix, model, checkpoint = match.groups()
        if prefix in encoders:
            raise InputError(f"--encoder {word} has the prefix of another: name it differently")
        encoders[prefix] = (model, checkpoint)
    return encoders
