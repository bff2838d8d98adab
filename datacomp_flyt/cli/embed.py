"""Make a metadata folder, with embeddings and CLIP scores, of downloaded image tars."""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datacomp_flyt.engines.engine import Engine
from datacomp_flyt.engines.flags import add_engine_arguments, make_engine, report_failures
from datacomp_flyt.engines.shards import run_shards
from datacomp_flyt.errors import InputError
from datacomp_flyt.files.locks import lock_outputs
from datacomp_flyt.files.output_files import check_save_path, remove_unfinished
from datacomp_flyt.files.settings_file import SETTINGS_FILE, check_settings
from datacomp_flyt.installation import needs_extra
from datacomp_flyt.pool.outputs import Output, check_outputs, watch_inputs
from datacomp_flyt.streams import say
from datacomp_flyt.tars.shard_names import absolute_path, shards_by_name

if TYPE_CHECKING:
    from datacomp_flyt.clip.embed import EmbeddedShard
    from datacomp_flyt.clip.encoder import ClipEncoder

_ENCODER = re.compile(r"(?P<prefix>\w+)=(?P<model>[^:]+):(?P<checkpoint>.+)")


def add_arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    with needs_extra("train"):
        from datacomp_flyt.scorers.base.image_scorer import add_image_arguments
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
        help="of the npz arrays (default: %(default)s)",
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
    """Embed the tars that are not done yet; return 1 if some could not be read.

    Raises:
        InputError: a flag is wrong, or the folder holds something else, or nothing can be used.
    """
    with needs_extra("train"):
        from datacomp_flyt.scorers.base.image_scorer import check_image_arguments
        from datacomp_flyt.tars.shards import list_shards
    check_image_arguments(args.batch_size, args.decode_threads)
    unchanged = watch_inputs(vars(args))
    encoders = _encoders(args.encoder)
    shards = shards_by_name(list_shards(args.shards_dir, "--shards_dir"), "--shards_dir")
    engine = make_engine(args)
    settings: dict[str, Any] = {"dtype": args.dtype, "precision": args.precision}
    settings["make_uids"] = args.make_uids
    settings["source"] = absolute_path(args.shards_dir)
    settings["encoders"] = {prefix: encoder.check()[1] for prefix, encoder in encoders.items()}
    folder = check_save_path(f"{args.metadata_dir}/{SETTINGS_FILE}", "--metadata_dir").parent
    written = ("*.parquet", "*.npz", SETTINGS_FILE)
    check_outputs([Output("--metadata_dir", folder, written)], vars(args))
    with lock_outputs(folder):
        check_settings(folder, settings, "give another --metadata_dir")
        remove_unfinished(folder)
        return _embed(args, encoders, shards, folder, engine, unchanged)


def _embed(
    args: argparse.Namespace,
    encoders: dict[str, ClipEncoder],
    shards: dict[str, str],
    folder: Path,
    engine: Engine,
    unchanged: Callable[[], None],
) -> int:
    from datacomp_flyt.clip.embed import MakeEmbed, write_embedded
    from datacomp_flyt.scorers.base.until_usable import UntilUsable, Usable, has_rows
    from datacomp_flyt.tars.shards import watch_tars

    check = watch_tars(shards)
    done = {path.stem for path in folder.glob("*.parquet") if path.is_file() and has_rows(path)}
    todo = {name: shard for name, shard in shards.items() if name not in done}
    say(f"{len(shards):,} tars, {len(shards) - len(todo):,} of them embedded before")
    counts: Counter[str] = Counter()
    empty: list[str] = []

    def count(shard: EmbeddedShard) -> Usable:
        return Usable(shard.table.num_rows, shard.table.num_rows, shard.counts)

    def write(name: str, shard: EmbeddedShard) -> int:
        write_embedded(folder, name, shard)
        empty.extend([] if shard.table.num_rows else [name])
        counts["embedded"] += shard.table.num_rows
        counts.update(shard.counts)
        return int(shard.table.num_rows)

    make = MakeEmbed(
        *(encoders, args.dtype, args.precision, args.batch_size),
        *(args.decode_threads, args.make_uids),
    )
    where = f"--shards_dir {args.shards_dir}"
    until_usable = UntilUsable(write, count, len(todo) < len(shards), where)

    def keep(name: str, shard: EmbeddedShard) -> int:
        check(name)
        unchanged()
        return until_usable(name, shard)

    with engine:
        failed = run_shards(engine, make, todo, keep, retries=args.retries, label="embed")
    if not failed:
        until_usable.finish()
    say(f"{counts.pop('embedded', 0):,} pairs embedded in {folder}")
    for reason, number in counts.most_common():
        say(f"  {number:,} samples left out: {reason}")
    if empty:
        say(f"  {len(empty):,} tars have no member, such as {shards[empty[0]]}")
    return report_failures(failed, "embed")


def _encoders(given: list[str] | None) -> dict[str, ClipEncoder]:
    from datacomp_flyt.clip.encoder import ClipEncoder

    example = "give PREFIX=MODEL:CHECKPOINT, such as b32=ViT-B-32-quickgelu:openai"
    if not given:
        raise InputError(f"--encoder is missing: {example}")
    encoders: dict[str, ClipEncoder] = {}
    for text in given:
        found = _ENCODER.fullmatch(text)
        if found is None:
            raise InputError(f"--encoder {text} is not of the form that it takes: {example}")
        prefix, model, checkpoint = found.groups()
        if prefix in encoders:
            raise InputError(f"--encoder {text} has the prefix of another: name it differently")
        encoders[prefix] = ClipEncoder(model, checkpoint, (f"--encoder {prefix}:",) * 2)
    return encoders
