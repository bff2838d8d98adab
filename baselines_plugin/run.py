"""The whole job: pool, scores, counts, subset."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from baselines_plugin.methods import Scorer, pool_size
from baselines_plugin.registry import METHODS, Method
from baselines_plugin.sampling import SAMPLINGS, Sampler
from datacomp_flyt.engines.engine import Engine
from datacomp_flyt.engines.flags import choose_engine
from datacomp_flyt.errors import InputError
from datacomp_flyt.exits import running
from datacomp_flyt.files.locks import lock_outputs
from datacomp_flyt.files.memmap_arrays import filter_rows
from datacomp_flyt.files.output_files import atomic_write, check_save_path, remove_unfinished
from datacomp_flyt.mixing import save_mixing_model
from datacomp_flyt.mixing.columns import Columns
from datacomp_flyt.mixing.columns_in_files import FileColumns
from datacomp_flyt.pool.available import Available
from datacomp_flyt.pool.manifest import check_against
from datacomp_flyt.pool.outputs import Output, check_outputs
from datacomp_flyt.pool.parquet import check_shards
from datacomp_flyt.pool.pool import read_pool
from datacomp_flyt.pool.subset import describe_counts, write_subset
from datacomp_flyt.pool.uids import encode_uids
from datacomp_flyt.streams import say
from datacomp_flyt.tars.download_keys import DownloadKeys
from datacomp_flyt.tars.image_list import available_images

_METHOD_FLAGS = {flag for method in METHODS.values() for flag in method.flags}
_SAMPLING_FLAGS = {flag for _, flags in SAMPLINGS.values() for flag in flags}
_HOST_ONLY_FLAGS = {"threshold", "arch", "image_based_scale"}
_ROW_GROUP = 1 << 20


def run_if_ours(args: argparse.Namespace, program: str = "baselines.py") -> None:
    """Run `--name` and end the program, if it is one of our methods; else return.

    Raises:
        SystemExit: 0, or see `exits.running`.
    """
    if args.name in METHODS:
        with running(program) as command:
            command.flags = vars(args)
            run(METHODS[args.name], args)
        sys.exit(0)


def run(method: Method, args: argparse.Namespace) -> None:
    """Read the pool and its scores, sample, and write the subset.

    Raises:
        InputError: something given is wrong; no file is written then.
    """
    sampling = _check_flags(method, args)
    make_sampler = method.make_sampler or SAMPLINGS[sampling][0]
    scorer, sampler = method.make_scorer(args), make_sampler(args)
    engine = _choose_engine(args)
    paths, work_dir = _check_save_paths(args), _work_dir(args)
    _check_outputs(args, paths, work_dir)
    with lock_outputs(*paths.values(), *work_dir):
        for path in paths.values():
            remove_unfinished(path)
        _select(args, scorer, sampler, paths, engine)


def _select(
    args: argparse.Namespace,
    scorer: Scorer,
    sampler: Sampler,
    paths: Mapping[str, Path],
    engine: Engine | None,
) -> None:
    say(f"running: {args.name}")
    if args.manifest is not None:
        check_against(args.manifest, args.metadata_dir, "--metadata_dir")
    available = available_images(args.available, args.shards_dir, args.num_workers)
    columns = _open_columns(args, engine, available)
    pool = columns.pool
    say(f"the pool lists {pool.num_listed:,} examples in {len(pool.shards):,} files")
    scores, model = scorer(columns)
    uids, files = columns.uids(), columns.files()
    number = len(scores)
    scores, uids = filter_rows((scores, uids), lambda some: ~np.isnan(some))
    if len(scores) < number:
        say(f"leaving out {number - len(scores):,} examples without a score")
    size = pool_size(columns, len(scores), args)
    del columns, pool
    # others were cut by a stage before: of the pool, and never drawn
    scores, uids = filter_rows((scores, uids), lambda some: some > -np.inf)
    if len(scores) < size.scored:
        say(f"the stage before sampling leaves {len(scores):,} examples")
    counts = sampler(scores, uids, size)
    check_shards(files)
    if available is not None:
        available.check_unchanged()
    if "save_scores" in paths:
        _write_scores(paths["save_scores"], uids, scores, args.name)
        say(f"saved the scores as {paths['save_scores']}")
    if "save_scoring_model" in paths and model is not None:
        save_mixing_model(model, paths["save_scoring_model"])
        say(f"saved the mixing model as {paths['save_scoring_model']}")
    del scores

    write_subset(paths["save_path"], uids, counts)
    say(f"saved {paths['save_path']}")
    for fact in describe_counts(counts):
        say(f"  {fact}")


def _choose_engine(args: argparse.Namespace) -> Engine | None:
    """What sorts `--work_dir`; None where it is not given."""
    if args.work_dir is not None:
        # of a cluster's machines the number of cores here says nothing
        num_workers = None if args.ray_address else args.num_workers
        return choose_engine(args.engine, args.ray_address, num_workers, "cpu")
    for flag in ("engine", "ray_address"):
        if getattr(args, flag) is not None:
            raise InputError(
                f"--{flag} says where --work_dir is sorted, and a pool in memory is not: add "
                f"--work_dir, or leave --{flag} out"
            )
    return None


def _open_columns(
    args: argparse.Namespace, engine: Engine | None, available: Available | None
) -> Columns:
    """The pool's columns, in memory or, with an engine, in files."""
    places = (args.metadata_dir, args.scores_dir, args.num_workers)
    allowed = (args.allow_partial_scores, args.drop_nonfinite)
    keys = DownloadKeys(args.shards_dir, args.num_workers) if args.shards_dir else None
    if engine is None:
        pool = read_pool(args.metadata_dir, args.num_workers, available=available)
        return Columns(pool, *places, *allowed, keys=keys)
    return FileColumns(*places, *allowed, Path(args.work_dir), engine, available, keys)


def _work_dir(args: argparse.Namespace) -> list[Path]:
    """The folder of `--work_dir`, made; none where it is not given."""
    if args.work_dir is None:
        return []
    if "://" in args.work_dir:
        raise InputError(f"--work_dir {args.work_dir} is a cloud path: name a local folder")
    return [check_save_path(Path(args.work_dir) / "job.json", "--work_dir").parent]


def _check_flags(method: Method, args: argparse.Namespace) -> str:
    """The sampling to use; raises InputError if a flag is given that nothing would read."""
    if method.sampling and args.sampling not in (None, method.sampling):
        raise InputError(
            f"--name {method.name} always samples by {method.sampling}: leave out "
            f"--sampling {args.sampling}, or name {args.sampling}"
        )
    if method.make_sampler and args.sampling:
        raise InputError(
            f"--name {method.name} says itself how often each example is drawn: leave out "
            f"--sampling {args.sampling}"
        )
    sampling = method.sampling or args.sampling or "scs"
    read = {*method.flags, *(() if method.make_sampler else SAMPLINGS[sampling][1])}
    for flag in sorted(_METHOD_FLAGS | _SAMPLING_FLAGS | _HOST_ONLY_FLAGS):
        value = getattr(args, flag, None)
        if flag not in read and value is not None and value is not False:
            raise InputError(
                f"--{flag} has no meaning for --name {method.name}"
                + ("" if method.make_sampler else f" with sampling {sampling}")
                + ": leave it out"
            )
    if method.reads_pool and args.work_dir is not None:
        raise InputError(
            f"--work_dir is for methods that mix score columns, and --name {method.name} reads "
            "more: leave it out, or make a column first (datacomp-flyt score) and sample that "
            "(--name scs --score COLUMN)"
        )
    if args.num_workers < 1:
        raise InputError(f"--num_workers is {args.num_workers}, wanted 1 or more")
    return sampling


def _check_save_paths(args: argparse.Namespace) -> dict[str, Path]:
    """The path of each output, by flag; raises InputError unless all can be written."""
    flags = ("save_path", "save_scores", "save_scoring_model")
    given = {flag: getattr(args, flag) for flag in flags if getattr(args, flag) is not None}
    return {flag: check_save_path(value, f"--{flag}") for flag, value in given.items()}


def _check_outputs(args: argparse.Namespace, paths: Mapping[str, Path], work: list[Path]) -> None:
    """Raise InputError unless all outputs are files of their own, apart from what is read."""
    outputs = [
        Output(f"--{flag}", path, column=args.name if flag == "save_scores" else None)
        for flag, path in paths.items()
    ]
    outputs += [Output("--work_dir", folder, ("job.json",), whole=True) for folder in work]
    check_outputs(outputs, vars(args))


def _write_scores(
    path: Path, uids: NDArray[np.void], scores: NDArray[np.floating], column: str
) -> None:
    schema = pa.schema({"uid": pa.large_string(), column: pa.from_numpy_dtype(scores.dtype)})
    with atomic_write(path) as file, pq.ParquetWriter(file, schema) as writer:
        for start in range(0, len(uids), _ROW_GROUP):
            part = slice(start, start + _ROW_GROUP)
            arrays = [encode_uids(uids[part]), pa.array(scores[part])]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
