"""Make a metadata folder of downloaded image tars: the function behind `datacomp-flyt embed`."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datacomp_flyt.clip.embedded_shard import EmbeddedShard, EmbedTask, write_embedded
from datacomp_flyt.clip.encoder import ClipEncoder
from datacomp_flyt.clip.flags import BATCH_SIZE, check_image_arguments
from datacomp_flyt.engines.engine import Engine
from datacomp_flyt.engines.flags import make_engine
from datacomp_flyt.engines.shards import run_shards
from datacomp_flyt.engines.until_usable import UntilUsable, Usable, has_rows
from datacomp_flyt.errors import InputError
from datacomp_flyt.files.locks import lock_outputs
from datacomp_flyt.files.output_files import check_save_path, remove_unfinished
from datacomp_flyt.files.settings_file import SETTINGS_FILE, check_settings
from datacomp_flyt.pool.outputs import Output, check_outputs, watch_inputs
from datacomp_flyt.streams import say
from datacomp_flyt.tars.samples import require_webdataset
from datacomp_flyt.tars.shard_names import absolute_path, shards_by_name
from datacomp_flyt.tars.shards import list_shards, watch_tars

EXAMPLE = "give PREFIX=MODEL:CHECKPOINT, such as b32=ViT-B-32-quickgelu:openai"


@dataclass
class EmbedReport:
    """The outcome of an embedding job.

    Attributes:
        folder: the folder of the metadata files and npz.
        failed: the last error of each tar that was not finished, by name.
        counts: the number of samples that were left out, by reason, in the tars of this run.
        num_pairs: pairs embedded by this run.
        num_embedded: tars that this run embedded.
        num_finished_before: tars that were embedded before.
        empty: tars of this run without a member.
    """

    folder: Path
    failed: dict[str, Exception] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    num_pairs: int = 0
    num_embedded: int = 0
    num_finished_before: int = 0
    empty: list[str] = field(default_factory=list)


def embed(
    *,
    shards_dir: str | Path,
    metadata_dir: str | Path,
    encoders: Mapping[str, tuple[str, str]],
    dtype: str = "float16",
    precision: str = "fp32",
    batch_size: int = BATCH_SIZE,
    decode_threads: int | None = None,
    make_uids: bool = False,
    engine: str | None = None,
    ray_address: str | None = None,
    num_workers: int | None = None,
    device: str = "auto",
    retries: int = 2,
) -> EmbedReport:
    """Write a metadata file and an npz of embeddings for each tar, in DataComp's layout.

    Tars that were embedded before are not embedded again.

    Args:
        shards_dir: tars of img2dataset: a folder, a pattern with braces, or an address.
        metadata_dir: the folder that is written.
        encoders: model and checkpoint of CLIP models by the prefix of their arrays, such as
            `{"b32": ("ViT-B-32-quickgelu", "openai")}`; see `ClipEncoder`.
        dtype: the type of the npz arrays, "float16" or "float32".
        precision: "fp32" or "bf16".
        batch_size: images in a batch.
        decode_threads: decoding threads in each worker; None for 1 on a CPU, and on GPUs for the
            cores divided by the GPUs.
        make_uids: for tars that are not DataComp's: make uids of shard and key, and accept samples
            without a caption.
        engine, ray_address, num_workers, device, retries: see `datacomp_flyt.score`.

    Returns:
        the numbers of pairs and samples, and the error of each tar that failed.

    Raises:
        InputError: an argument or a file is wrong, the folder was made with other settings, or no
            sample can be used.
    """
    check_image_arguments(batch_size, decode_threads)
    flags = {
        "shards_dir": str(shards_dir),
        "metadata_dir": str(metadata_dir),
        "encoder": [word for words in encoders.values() for word in words],
    }
    unchanged = watch_inputs(flags)
    clips = _make_encoders(encoders)
    task = EmbedTask(clips, dtype, precision, batch_size, decode_threads, make_uids)
    require_webdataset()
    shards = shards_by_name(list_shards(str(shards_dir), "--shards_dir"), "--shards_dir")
    workers = make_engine(
        engine, ray_address=ray_address, num_workers=num_workers, device=device, retries=retries
    )
    with _locked_folder(metadata_dir, str(shards_dir), task, flags) as folder:
        return _embed(
            task, shards, folder, f"--shards_dir {shards_dir}", workers, retries, unchanged
        )


def _make_encoders(encoders: Mapping[str, tuple[str, str]]) -> dict[str, ClipEncoder]:
    """Make the encoder of each prefix."""
    if not encoders:
        raise InputError(f"--encoder is missing: {EXAMPLE}")
    return {
        prefix: ClipEncoder(model, checkpoint, (f"--encoder {prefix}:",) * 2)
        for prefix, (model, checkpoint) in encoders.items()
    }


@contextlib.contextmanager
def _locked_folder(
    metadata_dir: str | Path, shards_dir: str, task: EmbedTask, flags: Mapping[str, Any]
) -> Iterator[Path]:
    """Lock the folder that is written, check its settings, and remove its unfinished files."""
    settings: dict[str, Any] = {
        "dtype": task.dtype,
        "precision": task.precision,
        "make_uids": task.make_uids,
        "source": absolute_path(shards_dir),
        "encoders": {prefix: clip.check()[1] for prefix, clip in task.encoders.items()},
    }
    folder = check_save_path(f"{metadata_dir}/{SETTINGS_FILE}", "--metadata_dir").parent
    written = ("*.parquet", "*.npz", SETTINGS_FILE)
    check_outputs([Output("--metadata_dir", folder, written)], flags)
    with lock_outputs(folder):
        check_settings(folder, settings, "give another --metadata_dir", ("*.parquet", "*.npz"))
        remove_unfinished(folder)
        yield folder


def _embed(
    task: EmbedTask,
    shards: dict[str, str],
    folder: Path,
    source: str,
    engine: Engine,
    retries: int,
    unchanged: Callable[[], None],
) -> EmbedReport:
    """Embed the tars that are not finished."""
    tar_unchanged = watch_tars(shards)
    done = {path.stem for path in folder.glob("*.parquet") if path.is_file() and has_rows(path)}
    todo = {name: shard for name, shard in shards.items() if name not in done}
    report = EmbedReport(folder, num_finished_before=len(shards) - len(todo))
    say(f"{len(shards):,} tars, {report.num_finished_before:,} of them embedded before")

    def write(name: str, shard: EmbeddedShard) -> int:
        num_pairs = int(shard.table.num_rows)
        write_embedded(folder, name, shard)
        report.empty.extend([] if num_pairs else [shards[name]])
        report.num_pairs += num_pairs
        report.num_embedded += 1
        report.counts.update(shard.counts)
        return num_pairs

    until_usable = UntilUsable(write, _usable, report.num_finished_before > 0, source)

    def keep(name: str, shard: EmbeddedShard) -> int:
        tar_unchanged(name)
        unchanged()
        return until_usable(name, shard)

    with engine:
        report.failed = run_shards(engine, task, todo, keep, retries=retries, label="embed")
    if not report.failed:
        until_usable.finish()
    say(f"{report.num_pairs:,} pairs embedded in {folder}")
    for reason, count in report.counts.most_common():
        say(f"  {count:,} samples left out: {reason}")
    if report.empty:
        say(f"  {len(report.empty):,} tars have no member, such as {report.empty[0]}")
    return report


def _usable(shard: EmbeddedShard) -> Usable:
    return Usable(shard.table.num_rows, shard.table.num_rows, shard.counts)
