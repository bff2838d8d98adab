"""Self-Filtering-style rounds: train CLIP on the mix, score the pool with it, mix anew."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datacomp_flyt.errors import InputError
from datacomp_flyt.files.locks import lock_outputs
from datacomp_flyt.files.output_files import check_save_path
from datacomp_flyt.files.settings_file import SETTINGS_FILE, check_settings
from datacomp_flyt.installation import needs_extra, require_training
from datacomp_flyt.mixing.columns import Columns, check_named_once
from datacomp_flyt.pool.outputs import Output, check_outputs
from datacomp_flyt.pool.pool import FilePool
from datacomp_flyt.self_filtering.settings import (
    RANDOM_SHARE,
    SCHEDULES,
    SCORES,
    SELECTORS,
    Settings,
)
from datacomp_flyt.streams import say
from datacomp_flyt.tars.shard_names import absolute_path
from datacomp_flyt.threads import default_num_workers

if TYPE_CHECKING:
    from datacomp_flyt.self_filtering.rounds import Run

_CLOSED_LOOP = ("downstream_dir", "scores_dir", "score_columns", "flyt_flags", "repetition_penalty")


def add_arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    parser.usage = "%(prog)s [flags] -- -m open_clip_train.main ARGS...   or   -- train.py ARGS..."
    default = {field.name: field.default for field in dataclasses.fields(Settings)}
    add = parser.add_argument
    add("--shards_dir", required=True, metavar="TARS", help="the pool: a folder, or a pattern")
    add("--out", required=True, metavar="RUN", help="folder of the run; the same command goes on")
    add("--rounds", type=int, default=default["rounds"], help="(default: %(default)s)")
    add("--samples_per_round", type=int, metavar="N", help="that training sees, and draws of a mix")
    scores = "; ".join(f"{name}: {text}" for name, text in SCORES.items())
    add("--score", choices=list(SCORES), default="alignment", help=f"{scores} (alignment)")
    add("--confident_fraction", type=float, metavar="F", help="of the pool, by score (0.3)")
    add(
        "--random_share",
        type=float,
        metavar="R",
        help=f"of a mix's draws, from the whole pool ({RANDOM_SHARE}; closed loop: 0)",
    )
    add("--random_schedule", choices=SCHEDULES, default="constant", help="(default: constant)")
    start = parser.add_mutually_exclusive_group()
    start.add_argument(
        "--restart", action="store_true", help="train each round from scratch (the default)"
    )
    start.add_argument(
        "--continue", dest="continued", action="store_true", help="from the last round's weights"
    )
    add("--train_last", action="store_true", help="also train on the last mix, as rounds do")
    add("--model", help="of open_clip, that the trainer trains (default: its --model)")
    add("--model_config", metavar="FILE.json", help="a model that open_clip does not know")
    add("--distinct_in_batch", action="store_true", help="no pair twice in a contrastive batch")
    add("--temperature", type=float, help="info_nce: another than the model's own")
    add("--info_nce_batch", type=int, default=4096, help="info_nce: pairs of a batch")
    add("--info_nce_partitions", type=int, default=3, help="info_nce: K random partitions")
    add("--seed", type=int, default=0, help="of halves, shares and shuffles (default: 0)")
    add("--keep_embeddings", action="store_true", help="do not remove a round's npz")
    add("--no_reports", action="store_true", help="no pages, which want the report extra")
    group = parser.add_argument_group("to judge by, where some noise is known")
    group.add_argument("--labels", metavar="FILE", help="parquet of `uid` and `kind`")
    group.add_argument("--noise_kinds", nargs="+", default=[], help="kinds that are noise")
    group = parser.add_argument_group("closed-loop FLYT")
    group.add_argument(
        "--selector",
        choices=SELECTORS,
        default="self_filtering",
        help="m_flyt and e_flyt learn a scoring model in each round, whose reference is the "
        "round's model (default: self_filtering)",
    )
    group.add_argument("--downstream_dir", help="labelled tars, as `datacomp-flyt train` has them")
    group.add_argument(
        "--scores_dir", help="m_flyt: score tables beside those of the round's model"
    )
    group.add_argument("--score_columns", nargs="+", metavar="COLUMN", help="m_flyt: of these")
    group.add_argument("--flyt_flags", help="flags of `datacomp-flyt train`, in quotes")
    group.add_argument("--repetition_penalty", type=float, help="of Soft Cap Sampling (0.15)")
    add("script", nargs="*", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Run the rounds that are not done yet; 0 when all are.

    Raises:
        InputError: a flag is wrong, or a step failed.
    """
    with needs_extra("train"):
        import open_clip  # noqa: F401
        import webdataset  # noqa: F401

        from datacomp_flyt.distributed.torchrun_ranks import ranks_of_torchrun
        from datacomp_flyt.steps import follow_steps, run_steps
    if not args.no_reports:
        with needs_extra("report"):
            import jinja2  # noqa: F401
            import matplotlib  # noqa: F401
    if args.selector != "self_filtering":
        require_training(f"datacomp-flyt self_filter --selector {args.selector}")
    planned = plan(args)
    steps = list(planned.steps())
    folder, ranks = Path(args.out), ranks_of_torchrun()
    check_outputs(_outputs(folder), vars(args))
    if ranks and ranks.rank:
        follow_steps(steps, folder, Path.cwd(), ranks)
        return 0
    with lock_outputs(check_save_path(folder / SETTINGS_FILE, "--out").parent):
        _note(folder, planned)
        made = ("round_*/**", "report")
        run_steps(steps, folder, cwd=Path.cwd(), ranks=ranks, made=made)
    say("", f"The last mix: {folder / 'mix.npy'}")
    if planned.reports:
        say(f"All rounds as a page: {folder / 'report' / 'index.html'}")
    return 0


def _outputs(folder: Path) -> list[Output]:
    """The files and folders of a run."""
    from datacomp_flyt.self_filtering.finished import NOTE
    from datacomp_flyt.self_filtering.mix import MIX

    filled = ("done", "logs", "report", *(path.name for path in folder.glob("round_*")))
    return [
        Output("--out", folder, (MIX, NOTE, SETTINGS_FILE)),
        *(Output("--out", folder / name, ("*",), whole=True) for name in filled),
    ]


def plan(args: argparse.Namespace) -> Run:
    """The run that the flags describe.

    Raises:
        InputError: flags that are missing, wrong or do not go together.
    """
    from datacomp_flyt.clip.models import known_name
    from datacomp_flyt.self_filtering.rounds import Run
    from datacomp_flyt.self_filtering.trainer_command import TrainerCommand, split_words
    from datacomp_flyt.tars.shards import list_shards

    closed = args.selector != "self_filtering"
    trainer = TrainerCommand(tuple(args.script), args.shards_dir)
    for name in _CLOSED_LOOP:
        if getattr(args, name) is not None and not closed:
            raise InputError(f"--{name} is for --selector m_flyt or e_flyt: leave it out")
    given: dict[str, Any] = {
        name: getattr(args, name)
        for name in (field.name for field in dataclasses.fields(Settings))
        if getattr(args, name) is not None
    }
    given["samples_per_round"] = trainer.samples_per_round(args.samples_per_round)
    if closed and args.random_share is None:
        given["random_share"] = 0.0
    if closed and args.confident_fraction is not None:
        raise InputError("--confident_fraction has no meaning for the closed loop: leave it out")
    settings = Settings(**given)
    if closed and args.downstream_dir is None:
        raise InputError(f"--selector {args.selector} wants --downstream_dir: labelled tars")
    if args.temperature is not None and args.score != "info_nce" and args.selector != "m_flyt":
        raise InputError(
            "--temperature is for --score info_nce and --selector m_flyt: leave it out"
        )
    for flag in ("downstream_dir", "scores_dir"):
        place = getattr(args, flag)
        if place is not None and "://" not in place and not Path(place).is_dir():
            raise InputError(f"--{flag} {place} is no folder that is there: give one")
    _check_given_columns(args)
    _check_labels(args)
    list_shards(args.shards_dir, "--shards_dir")
    model = args.model_config or args.model or trainer.model
    if not model:
        raise InputError("--model is missing: which model of open_clip the trainer trains")
    known_name(model, "--model")
    return Run(
        out=args.out,
        settings=settings,
        trainer=trainer,
        model=model,
        model_config=args.model_config or (model if _is_ours(model) else None),
        hook=("--distinct_in_batch",) if args.distinct_in_batch else (),
        downstream_dir=args.downstream_dir,
        scores_dir=args.scores_dir,
        score_columns=tuple(args.score_columns or ()),
        flyt_flags=split_words(args.flyt_flags, "--flyt_flags") if args.flyt_flags else (),
        labels=args.labels,
        noise_kinds=tuple(args.noise_kinds),
        train_last=args.train_last,
        keep_embeddings=args.keep_embeddings,
        reports=not args.no_reports,
    )


def _check_given_columns(args: argparse.Namespace) -> None:
    """Raise InputError for score columns that a round could not read once its model is trained."""
    from datacomp_flyt.self_filtering.rounds import MODEL_COLUMNS

    if (args.scores_dir is None) != (args.score_columns is None):
        raise InputError("--scores_dir and --score_columns belong together: give both or neither")
    if args.scores_dir is None:
        return
    if args.selector != "m_flyt":
        raise InputError("--scores_dir is for --selector m_flyt: leave it out")
    check_named_once(
        (*MODEL_COLUMNS, *args.score_columns),
        "--score_columns, with the columns that each round makes,",
    )
    if "://" not in args.scores_dir:
        tables = Columns(FilePool([]), None, args.scores_dir, default_num_workers(), True, True)
        tables.find(args.score_columns, otherwise="name fewer columns")


def _check_labels(args: argparse.Namespace) -> None:
    """Raise InputError unless there are labels, and some of the kinds, or neither was given."""
    if (args.labels is None) != (not args.noise_kinds):
        raise InputError(
            "--labels and --noise_kinds belong together: a table, and which of its kinds are noise"
        )
    if args.labels is None:
        return
    from datacomp_flyt.self_filtering.diagnostics import read_labels

    kinds = set(read_labels(Path(args.labels))[1])
    for kind in args.noise_kinds:
        if kind not in kinds:
            raise InputError(
                f"--noise_kinds {kind}: {args.labels} has no such kind, only "
                f"{', '.join(sorted(map(str, kinds))[:20])}"
            )


def _is_ours(model: str) -> bool:
    """Whether it is a model that this project makes known to open_clip."""
    from datacomp_flyt.clip.models import OWN_CONFIGS

    return (OWN_CONFIGS / f"{model}.json").is_file()


def _note(folder: Path, planned: Run) -> None:
    """Write what was asked for, to be read; and refuse a folder that holds another pool's rounds.

    Rounds may be added later, so they are no part of what has to be the same.
    """
    settings = dataclasses.asdict(planned.settings)
    if planned.settings.random_schedule == "constant":
        del settings["rounds"]
    settings["pool"] = absolute_path(planned.trainer.shards_dir)
    settings["trainer"] = list(planned.trainer.words)
    for name in (
        *("model", "model_config", "hook", "downstream_dir", "scores_dir"),
        *("score_columns", "flyt_flags"),
    ):
        settings[name] = getattr(planned, name)
    check_settings(folder, json.loads(json.dumps(settings)), "give another --out")
