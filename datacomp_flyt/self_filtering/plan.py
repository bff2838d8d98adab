"""Plan a run: check the options of `self_filter` and fill in those that others imply."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datacomp_flyt.arguments import check_list
from datacomp_flyt.errors import InputError
from datacomp_flyt.mixing.columns import Columns, check_named_once
from datacomp_flyt.pool.pool import FilePool
from datacomp_flyt.self_filtering.labels import check_noise_kinds
from datacomp_flyt.self_filtering.rounds import MODEL_COLUMNS, Run
from datacomp_flyt.self_filtering.settings import Settings
from datacomp_flyt.self_filtering.trainer_command import TrainerCommand
from datacomp_flyt.tars.shards import list_shards
from datacomp_flyt.threads import default_num_workers

_CLOSED_LOOP = ("downstream_dir", "scores_dir", "score_columns", "flyt_flags", "repetition_penalty")


@dataclass(frozen=True, kw_only=True)
class SelfFilterOptions:
    """The options of `self_filter`; each is a flag of `datacomp-flyt self_filter`.

    Options that are not described here are those of `settings.Settings`, where None stands for
    the default.

    Attributes:
        trainer: the trainer's command: `-m open_clip_train.main ARGS`, or `train.py ARGS`.
        shards_dir: the pool's tars: a folder, or a pattern.
        out: the run's folder; a second call with the same options resumes.
        samples_per_round: required unless DataComp's `train.py` and its scale set it.
        random_share: None for 0.2, or for 0 in the closed loop.
        train_last: also train on the last subset, as rounds do.
        model: open_clip's name of the model that the trainer trains; None for its `--model`.
        model_config: the JSON file of a model that open_clip does not know.
        distinct_in_batch: no pair occurs twice in a contrastive batch.
        keep_embeddings: keep a round's npz after the pool is scored.
        reports: make HTML pages, which needs the extra `report`.
        labels, noise_kinds: a parquet of `uid` and `kind` to judge by, and the kinds that are
            noise. Selection does not read them.
        downstream_dir: closed loop: labelled tars.
        scores_dir, score_columns: M-FLYT in a closed loop: external score tables, and the columns
            of them that are mixed with those of the round's model.
        flyt_flags: closed loop: further flags of `datacomp-flyt train`.
    """

    trainer: Sequence[str]
    shards_dir: str
    out: str
    samples_per_round: int | None = None
    rounds: int = Settings.rounds
    score: str = Settings.score
    confident_fraction: float | None = None
    random_share: float | None = None
    random_schedule: str = Settings.random_schedule
    continued: bool = False
    train_last: bool = False
    model: str | None = None
    model_config: str | None = None
    distinct_in_batch: bool = False
    temperature: float | None = None
    info_nce_batch: int = Settings.info_nce_batch
    info_nce_partitions: int = Settings.info_nce_partitions
    seed: int = 0
    keep_embeddings: bool = False
    reports: bool = True
    labels: str | None = None
    noise_kinds: Sequence[str] = ()
    selector: str = Settings.selector
    downstream_dir: str | None = None
    scores_dir: str | None = None
    score_columns: Sequence[str] | None = None
    flyt_flags: Sequence[str] | None = None
    repetition_penalty: float | None = None


def plan(options: SelfFilterOptions) -> Run:
    """Return the run that the options describe.

    Raises:
        InputError: options are missing, wrong or do not go together.
    """
    check_list(options.trainer, "the command of the trainer")
    for name in ("noise_kinds", "score_columns", "flyt_flags"):
        check_list(getattr(options, name) or (), f"--{name}")
    trainer = TrainerCommand(tuple(options.trainer), options.shards_dir)
    settings = _settings(options, trainer)
    _check_closed_loop(options, settings)
    _check_external_scores(options)
    _check_labels(options)
    list_shards(options.shards_dir, "--shards_dir")
    model, model_config = _model(options, trainer)
    return Run(
        out=options.out,
        settings=settings,
        trainer=trainer,
        model=model,
        model_config=model_config,
        hook=("--distinct_in_batch",) if options.distinct_in_batch else (),
        downstream_dir=options.downstream_dir,
        scores_dir=options.scores_dir,
        score_columns=tuple(options.score_columns or ()),
        flyt_flags=tuple(options.flyt_flags or ()),
        labels=options.labels,
        noise_kinds=tuple(options.noise_kinds),
        train_last=options.train_last,
        keep_embeddings=options.keep_embeddings,
        reports=options.reports,
    )


def _settings(options: SelfFilterOptions, trainer: TrainerCommand) -> Settings:
    names = {field.name for field in dataclasses.fields(Settings)}
    given: dict[str, Any] = {
        name: value for name, value in vars(options).items() if name in names and value is not None
    }
    given["samples_per_round"] = trainer.samples_per_round(options.samples_per_round)
    if options.selector != "self_filtering":
        given.setdefault("random_share", 0.0)
    return Settings(**given)


def _check_closed_loop(options: SelfFilterOptions, settings: Settings) -> None:
    """Raise InputError for options that the selector does not read, or that it needs."""
    if settings.is_closed_loop:
        if options.confident_fraction is not None:
            raise InputError(
                "--confident_fraction has no meaning for the closed loop: leave it out"
            )
        if options.downstream_dir is None:
            raise InputError(f"--selector {options.selector} wants --downstream_dir: labelled tars")
    for name in () if settings.is_closed_loop else _CLOSED_LOOP:
        if getattr(options, name) is not None:
            raise InputError(f"--{name} is for --selector m_flyt or e_flyt: leave it out")
    reads_temperature = options.score == "info_nce" or options.selector == "m_flyt"
    if options.temperature is not None and not reads_temperature:
        raise InputError(
            "--temperature is for --score info_nce and --selector m_flyt: leave it out"
        )
    for flag in ("downstream_dir", "scores_dir"):
        folder = getattr(options, flag)
        if folder is not None and "://" not in folder and not Path(folder).is_dir():
            raise InputError(f"--{flag} {folder} is no folder that is there: give one")


def _check_external_scores(options: SelfFilterOptions) -> None:
    """Raise InputError for score columns that a round could not read once its model is trained."""
    if (options.scores_dir is None) != (options.score_columns is None):
        raise InputError("--scores_dir and --score_columns belong together: give both or neither")
    if options.scores_dir is None or options.score_columns is None:
        return
    if options.selector != "m_flyt":
        raise InputError("--scores_dir is for --selector m_flyt: leave it out")
    check_named_once(
        (*MODEL_COLUMNS, *options.score_columns),
        "--score_columns, with the columns that each round makes,",
    )
    if "://" not in options.scores_dir:
        tables = Columns(FilePool([]), None, options.scores_dir, default_num_workers(), True, True)
        tables.find(list(options.score_columns), otherwise="name fewer columns")


def _check_labels(options: SelfFilterOptions) -> None:
    """Raise InputError unless labels and their noise kinds are given, or neither is."""
    if (options.labels is None) != (not options.noise_kinds):
        raise InputError(
            "--labels and --noise_kinds belong together: a table, and which of its kinds are noise"
        )
    if options.labels is not None:
        check_noise_kinds(Path(options.labels), options.noise_kinds)


def _model(options: SelfFilterOptions, trainer: TrainerCommand) -> tuple[str, str | None]:
    """Return the model, and the configuration that `train_clip` makes known to open_clip."""
    from datacomp_flyt.clip.models import OWN_CONFIGS, known_name

    model = options.model_config or options.model or trainer.model
    if not model:
        raise InputError("--model is missing: which model of open_clip the trainer trains")
    known_name(model, "--model")
    is_own = (OWN_CONFIGS / f"{model}.json").is_file()
    return model, options.model_config or (model if is_own else None)
