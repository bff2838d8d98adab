"""The whole selection as one function: pool, scores, draws and the files that are saved."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from datacomp_flyt.arguments import check_integer
from datacomp_flyt.errors import InputError
from datacomp_flyt.files.locks import lock_outputs
from datacomp_flyt.files.output_files import check_save_path, remove_unfinished
from datacomp_flyt.pool.outputs import Output, check_outputs
from datacomp_flyt.selection.methods import ScoringMethod
from datacomp_flyt.selection.open_pool import (
    checked_work_dir,
    open_columns,
    pool_engine,
)
from datacomp_flyt.selection.registry import Method, find_method, find_sampling, is_option
from datacomp_flyt.selection.sampling import Sampling, way_out
from datacomp_flyt.selection.scores import Scores
from datacomp_flyt.selection.subset import Subset
from datacomp_flyt.streams import say
from datacomp_flyt.threads import check_num_workers

ARGUMENTS = {"scores_dir": "scores"}
"""Maps the flags whose arguments of `select` are named otherwise to these arguments."""


class NoArgument(InputError):
    """A method and its sampling method do not read an argument of `select`.

    Attributes:
        flag_sentence: the same sentence for a user of the command, in terms of flags.
    """

    def __init__(self, sentence: str, flag_sentence: str) -> None:
        super().__init__(sentence)
        self.flag_sentence = flag_sentence


def select(
    method: str,
    *,
    metadata_dir: str | Path,
    save_path: str | Path,
    scores: str | Path | None = None,
    available: str | Path | None = None,
    shards_dir: str | Path | None = None,
    manifest: str | Path | None = None,
    work_dir: str | Path | None = None,
    engine: str | None = None,
    ray_address: str | None = None,
    num_workers: int | None = None,
    allow_partial_scores: bool = False,
    drop_nonfinite: bool = False,
    sampling: str | None = None,
    seed: int = 0,
    save_scores: str | Path | None = None,
    save_scoring_model: str | Path | None = None,
    **options: Any,
) -> Subset:
    """Select a subset and save it, as the command `python -m baselines_plugin` does.

    Arguments are checked before the pool is read. The pool is freed before sampling, so this takes
    less memory than the same steps with `open_pool`.

    Args:
        method: a name of `--name`, such as "m_flyt".
        save_path: the .npy file to write.
        sampling: a name of `--sampling`; "scs" if None.
        seed: any integer, for the draws.
        save_scores: a parquet file for the scores, in a column named like the method.
        save_scoring_model: a .safetensors file for the mixing model.
        options: options of the method and the sampling method, named like their flags, such as
            `scoring_model="paper"`; None is as good as leaving one out.

    The remaining arguments: see `open_pool`.

    Raises:
        InputError: something given is wrong; no file is written then.
    """
    pool: dict[str, Any] = {
        "scores_dir": scores, "available": available, "shards_dir": shards_dir,
        "manifest": manifest, "work_dir": work_dir, "allow_partial_scores": allow_partial_scores,
        "drop_nonfinite": drop_nonfinite,
    }  # fmt: skip
    outputs = {"save_path": save_path, "save_scores": save_scores}
    options["save_scoring_model"] = outputs["save_scoring_model"] = save_scoring_model
    threads = check_num_workers(num_workers)
    job = _prepared(method, sampling, options, pool, seed, threads)
    sorter = pool_engine(work_dir, engine, ray_address, num_workers)
    paths = _checked_paths(outputs)
    pool |= {"work_dir": checked_work_dir(work_dir), "engine": sorter, "num_workers": threads}
    inputs = {**pool, **options, "metadata_dir": metadata_dir}
    _check_outputs(paths, pool["work_dir"], method, inputs)
    with lock_outputs(*paths.values(), *filter(None, [pool["work_dir"]])):
        for path in paths.values():
            remove_unfinished(path)
        say(f"running: {method}")
        return _run(job, str(metadata_dir), pool, paths)


@dataclass(frozen=True)
class _Job:
    """A method and a sampling method whose options are checked."""

    name: str
    score: ScoringMethod
    sample: Callable[[Scores], Subset]


def _run(
    job: _Job, metadata_dir: str, pool: Mapping[str, Any], paths: Mapping[str, Path]
) -> Subset:
    """Score, sample and save."""
    scores = _scored(job, metadata_dir, pool)
    subset = job.sample(scores)
    if "save_scores" in paths:
        scores.save(paths["save_scores"])
        say(f"saved the scores as {paths['save_scores']}")
    if "save_scoring_model" in paths:
        scores.save_model(paths["save_scoring_model"])
        say(f"saved the mixing model as {paths['save_scoring_model']}")
    subset.save(paths["save_path"])
    say(f"saved {paths['save_path']}", *(f"  {line}" for line in subset.summary().splitlines()))
    return subset


def _scored(job: _Job, metadata_dir: str, pool: Mapping[str, Any]) -> Scores:
    """Open the pool, score it and free it."""
    columns = open_columns(metadata_dir, **pool, single_use=True)
    num_listed, num_files = columns.pool.num_listed, len(columns.pool.shards)
    say(f"the pool lists {num_listed:,} examples in {num_files:,} files")
    return replace(job.score(columns), name=job.name)


# ---------------------------------------------------------------- checks before any work


def _prepared(
    name: str,
    sampling: str | None,
    options: Mapping[str, Any],
    pool: Mapping[str, Any],
    seed: int,
    num_workers: int,
) -> _Job:
    """Check the options of a method and its sampling method, and read the files that they name."""
    seed = check_integer(seed, "--seed")
    method = find_method(name)
    sampler = _sampling_of(method, name, sampling)
    # 0 is a value, and equals False
    given = {k: v for k, v in options.items() if v is not None and v is not False}
    _check_meaning(method, name, sampler, given, pool)
    mine = {k: v for k, v in given.items() if k in method.options and k != "save_scoring_model"}
    score = method.make(**mine)
    if sampler is None:
        return _Job(name, score, lambda scores: Subset(scores.uids, scores.values.astype(np.int32)))
    of_sampling = {k: v for k, v in given.items() if k in sampler.flags}
    sampler.check(**of_sampling)

    def sample(scores: Scores) -> Subset:
        return sampler.sample(scores, seed=seed, num_workers=num_workers, **of_sampling)

    return _Job(name, score, sample)


def _sampling_of(method: Method, name: str, sampling: str | None) -> Sampling | None:
    """Return the sampling method to use; None if the scores are draw counts."""
    if method.sampling and sampling not in (None, method.sampling):
        raise InputError(
            f"--name {name} always samples by {method.sampling}: leave out --sampling {sampling}, "
            f"or name {sampling}"
        )
    if not method.counts:
        return find_sampling(method.sampling or sampling or "scs")
    if sampling:
        raise InputError(
            f"--name {name} says itself how often each example is drawn: leave out "
            f"--sampling {sampling}"
        )
    return None


def _check_meaning(
    method: Method,
    name: str,
    sampling: Sampling | None,
    options: Mapping[str, Any],
    pool: Mapping[str, Any],
) -> None:
    """Raise InputError if an option is given that nothing would read."""
    known = {*method.options, *(sampling.flags if sampling else ())}
    if unknown := sorted(set(options) - known):
        with_sampling = f" with sampling {sampling.name}" if sampling else ""
        raise NoArgument(
            f"select has no argument {unknown[0]} for {name}{with_sampling}: "
            + _way_out(unknown[0], known),
            f"--{unknown[0]} has no meaning for --name {name}{with_sampling}: leave it out",
        )
    if not method.reads_pool:
        return
    if pool["work_dir"] is not None:
        raise InputError(
            f"--work_dir is for methods that mix score columns, and --name {name} reads more: "
            "leave it out, or make a column first (datacomp-flyt score) and sample that (--name "
            "scs --column COLUMN)"
        )
    for flag in method.no_meaning:
        if pool[flag]:
            reason = f"{name}, which reads embeddings: leave it out"
            raise NoArgument(
                f"select has no argument {ARGUMENTS.get(flag, flag)} for {reason}",
                f"--{flag} has no meaning for --name {reason}",
            )


def _way_out(unknown: str, options: set[str]) -> str:
    """Name the nearest argument, unless another method has an option of the unknown name."""
    if unknown in ARGUMENTS:
        return f"did you mean {ARGUMENTS[unknown]}?"
    if is_option(unknown):
        return "leave it out"
    own = {*inspect.signature(select).parameters} - {"method", "options"}
    return way_out(unknown, sorted(options), sorted(own))


def _checked_paths(outputs: Mapping[str, str | Path | None]) -> dict[str, Path]:
    """Return the path of each output, by flag; raise InputError unless all can be written."""
    given = {flag: path for flag, path in outputs.items() if path is not None}
    return {flag: check_save_path(path, f"--{flag}") for flag, path in given.items()}


def _check_outputs(
    paths: Mapping[str, Path], work_dir: Path | None, column: str, inputs: Mapping[str, Any]
) -> None:
    """Raise InputError unless all outputs are files of their own, apart from what is read."""
    outputs = [
        Output(f"--{flag}", path, column=column if flag == "save_scores" else None)
        for flag, path in paths.items()
    ]
    if work_dir is not None:
        outputs.append(Output("--work_dir", work_dir, ("job.json",), whole=True))
    check_outputs(outputs, inputs)
