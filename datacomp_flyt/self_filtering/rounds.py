"""A run as steps: round after round of training, embedding, scoring and mixing.

RUN/round_k/mix.npy        what round k trains on; round 0's is the whole pool
    confident.npy          the part of it that was selected by score
    runs/                  the trainer's own folders
    metadata/ scores/      the pool's embeddings and scores by the round's model
    diagnostics.json report/
RUN/mix.npy, finished.json the mix of the last scores, in the end
RUN/report/                all rounds on one page
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from datacomp_flyt.self_filtering.mix import COLUMN, MIX
from datacomp_flyt.self_filtering.settings import TWO_MODELS, Settings
from datacomp_flyt.self_filtering.trainer_command import TrainerCommand, checkpoint_of
from datacomp_flyt.steps import Step
from datacomp_flyt.tars.shards import tars_in

_DOWNSTREAM = "--downstream_dir"
MODULE = "datacomp_flyt.self_filtering"
MODEL_COLUMNS = ("model_alignment", "model_info_nce", "model_vas")
"""Score columns that the closed loop makes of each round's model, beside those that are given."""

_NORM_SIM = "model_norm_sim"


@dataclass(frozen=True)
class Run:
    """What a run is made of.

    Attributes:
        out: its folder, as given.
        settings: its choices.
        trainer: the user's trainer command.
        model: of open_clip, or a JSON file: what the trainer trains.
        model_config: the JSON file that `train_clip` is to make known, or None.
        hook: more flags of `train_clip`.
        downstream_dir: closed loop: labelled tars.
        scores_dir, score_columns: closed loop: score tables from elsewhere, and which columns.
        flyt_flags: closed loop: more flags of `datacomp-flyt train`.
        labels, noise_kinds: a table of `uid` and `kind`, and which kinds are noise; to judge by.
        train_last: also train on the last mix.
        keep_embeddings: do not remove a round's npz once it is scored.
        reports: a page for each round of what it selected.
    """

    out: str
    settings: Settings
    trainer: TrainerCommand
    model: str
    model_config: str | None = None
    hook: tuple[str, ...] = ()
    downstream_dir: str | None = None
    scores_dir: str | None = None
    score_columns: tuple[str, ...] = ()
    flyt_flags: tuple[str, ...] = ()
    labels: str | None = None
    noise_kinds: tuple[str, ...] = ()
    train_last: bool = False
    keep_embeddings: bool = False
    reports: bool = True

    def folder(self, number: int) -> str:
        """Of a round."""
        return f"{self.out}/round_{number}"

    def steps(self) -> Iterator[Step]:
        """All, in order.

        Raises:
            InputError: see `TrainerCommand.train`.
        """
        last = self.settings.rounds
        yield self._module(
            "first_mix", "Round 0: the mix is the whole pool",
            "--shards_dir", self.trainer.shards_dir, "--out", self.folder(0),
            "--draws", str(self.settings.samples_per_round),
            "--seed", str(self.settings.seed), *self._halves,
        )  # fmt: skip
        for number in range(last):
            yield from self._train(number)
            yield self._embed(number)
            if self.settings.selector == "self_filtering":
                yield self._score(number)
            else:
                yield from self._learn(number)
            yield self._mix(number + 1)
            yield from self._judge(number)
            if not self.keep_embeddings:
                yield self._module(
                    "forget", f"Round {number}: its embeddings are not wanted any more",
                    self.folder(number), name=f"forget_{number}",
                )  # fmt: skip
        yield self._module(
            "finished", "The last mix is the result",
            "--run_dir", self.out, "--rounds", str(last),
            name=f"finished_{last}", aside=True, again=True,
        )  # fmt: skip
        if self.train_last:
            yield from self._train(last)
        yield from self._judge(last)
        if self.reports:
            yield self._module(
                "page", "All rounds on one page",
                "--run_dir", self.out, "--rounds", str(last), aside=True, again=True,
            )  # fmt: skip

    @property
    def _halves(self) -> tuple[str, ...]:
        return ("--halves",) if self.settings.score in TWO_MODELS else ()

    def _module(
        self, module: str, title: str, *flags: str, name: str | None = None, **how: bool
    ) -> Step:
        words = ("python", "-m", f"{MODULE}.{module}", *flags)
        return Step(name or module, title, words, **how)

    def _train(self, number: int) -> Iterator[Step]:
        """Of two models each on its half, and each as many samples as it has of the round's."""
        settings, folder = self.settings, self.folder(number)
        config = () if self.model_config is None else ("--model_config", self.model_config)
        for model in settings.models:
            mix = MIX if model == "model" else f"mix_{model}.npy"
            start = checkpoint_of(f"{self.folder(number - 1)}/runs", model)
            command = self.trainer.train(
                model,
                f"{folder}/runs",
                settings.samples_per_round // len(settings.models),
                start if settings.continued and number else None,
            )
            which = "CLIP" if model == "model" else f"Model {model}"
            seed = ("--shuffle_seed", str(settings.seed))
            words = ("train_clip", *config, "--subset", f"{folder}/{mix}", *seed, *self.hook)
            yield Step(
                f"train_{number}_{model}", f"Round {number}: {which}, trained on its mix",
                ("datacomp-flyt", *words, "--", *command), together=True,
            )  # fmt: skip

    def _embed(self, number: int) -> Step:
        folder = self.folder(number)
        encoders: list[str] = []
        for model in self.settings.models:
            checkpoint = checkpoint_of(f"{folder}/runs", model)
            encoders += ["--encoder", f"{model}={self.model}:{checkpoint}"]
        return Step(
            f"embed_{number}", f"Round {number}: the pool's embeddings by it",
            (
                "datacomp-flyt", "embed", "--shards_dir", self.trainer.shards_dir,
                "--metadata_dir", f"{folder}/metadata", *encoders,
            ),
        )  # fmt: skip

    def _score(self, number: int) -> Step:
        settings, folder = self.settings, self.folder(number)
        more: tuple[str, ...] = ()
        if settings.score == "info_nce":
            more = self._info_nce_flags(number)
        elif settings.score in TWO_MODELS:
            since = 0 if settings.continued else number
            more = ("--mixes", *(f"{self.folder(k)}/{MIX}" for k in range(since, number + 1)))
        return self._module(
            "scores", f"Round {number}: how clean it thinks each pair is",
            "--score", settings.score, "--metadata_dir", f"{folder}/metadata",
            "--out", f"{folder}/scores", "--seed", str(settings.seed), *more,
            name=f"score_{number}",
        )  # fmt: skip

    def _info_nce_flags(self, number: int) -> tuple[str, ...]:
        settings = self.settings
        given = settings.temperature
        checkpoint = checkpoint_of(f"{self.folder(number)}/runs", "model")
        return (
            *(("--checkpoint", checkpoint) if given is None else ("--temperature", str(given))),
            *("--batch_size", str(settings.info_nce_batch)),
            *("--num_partitions", str(settings.info_nce_partitions)),
        )

    def _mix(self, number: int) -> Step:
        """The mix that round `number` trains on, of the scores or the choice of the one before."""
        settings, before = self.settings, self.folder(number - 1)
        by_score = settings.selector == "self_filtering"
        scores, selected = f"{before}/scores", f"{before}/selected.npy"
        what = ("--scores_dir", scores) if by_score else ("--selected", selected)
        return self._module(
            "mix", f"Round {number - 1}: the next mix",
            "--metadata_dir", f"{before}/metadata", *what,
            "--draws", str(settings.samples_per_round),
            "--confident_fraction", str(settings.confident_fraction),
            "--random_share", str(settings.random_share_of(number)), "--round", str(number),
            "--seed", str(settings.seed), *self._halves, "--out", self.folder(number),
            name=f"mix_{number}",
        )  # fmt: skip

    def _learn(self, number: int) -> Iterator[Step]:
        """Closed loop: score columns by the round's model, a scoring model, Soft Cap Sampling."""
        settings, folder = self.settings, self.folder(number)
        selector = settings.selector
        pool: tuple[str, ...] = ("--metadata_dir", f"{folder}/metadata")
        if selector == "m_flyt":
            yield from self._columns(number)
            pool = (*pool, "--scores_dir", f"{folder}/scores")
            # the tars also have pairs that cannot be embedded; `select` misses no other's score
            partial = "--allow_partial_scores"
            features: tuple[str, ...] = (*pool[2:], partial, "--score_columns", *self.columns)
        else:
            arrays = ("--embedding_arrays", "model_img", "model_txt")
            features = ("--features", "embeddings", *pool, *arrays)
        assert self.downstream_dir is not None
        preset = () if "--preset" in self.flyt_flags else ("--preset", f"{selector}_base")
        yield Step(
            f"learn_{number}",
            f"Round {number}: a scoring model, with the round's model as its reference",
            (
                "datacomp-flyt", "train", *self.flyt_flags, *preset, "--seed", str(settings.seed),
                "--train_data", self.trainer.shards_dir, *features,
                "--downstream_dir", self.downstream_dir, "--reference_model", self.model,
                "--reference_init", checkpoint_of(f"{folder}/runs", "model"),
                "--output_dir", f"{folder}/flyt", "--resume",
            ),
            together=True,
        )  # fmt: skip
        draws = settings.samples_per_round
        draws -= round(settings.random_share_of(number + 1) * draws)
        yield Step(
            f"select_{number}", f"Round {number}: Soft Cap Sampling of its scores",
            (
                "python", "-m", "baselines_plugin",
                "--name", "m_flyt" if selector == "m_flyt" else "flyt", *pool,
                "--scoring_model", f"{folder}/flyt/scoring_model.safetensors",
                "--sampling", "scs", "--num_samples", str(draws), "--seed", str(settings.seed),
                "--repetition_penalty", str(settings.repetition_penalty),
                "--save_path", f"{folder}/selected.npy",
                "--save_scores", f"{folder}/scores/{COLUMN}/all.parquet",
            ),
        )  # fmt: skip

    @property
    def columns(self) -> tuple[str, ...]:
        """Score columns that M-FLYT mixes."""
        likeness = (_NORM_SIM,) if self._one_task else ()
        return (*MODEL_COLUMNS, *likeness, *self.score_columns)

    @property
    def _one_task(self) -> bool:
        """Whether tars lie in the downstream folder itself: then they can be embedded, too."""
        folder = self.downstream_dir
        return folder is not None and os.path.isdir(folder) and bool(tars_in(folder, _DOWNSTREAM))

    def _columns(self, number: int) -> Iterator[Step]:
        folder = self.folder(number)
        checkpoint = checkpoint_of(f"{folder}/runs", "model")
        if self.scores_dir is not None:
            yield self._module(
                "given_scores", f"Round {number}: score columns from elsewhere",
                "--scores_dir", self.scores_dir, "--out", f"{folder}/scores",
                name=f"given_{number}",
            )  # fmt: skip
        scorers: dict[str, Sequence[str]] = {
            "model_alignment": ("clip_score", "--source", "npz", "--arch", "model"),
            "model_vas": ("vas", "--arch", "model"),
        }
        if self._one_task:
            assert self.downstream_dir is not None
            yield Step(
                f"embed_downstream_{number}", f"Round {number}: embeddings of downstream pictures",
                (
                    "datacomp-flyt", "embed", "--make_uids", "--shards_dir", self.downstream_dir,
                    "--metadata_dir", f"{folder}/downstream",
                    "--encoder", f"model={self.model}:{checkpoint}",
                ),
            )  # fmt: skip
            targets = ("--targets", f"{folder}/downstream", "--arch", "model")
            scorers[_NORM_SIM] = ("norm_sim", *targets)
        for column, (scorer, *flags) in scorers.items():
            yield Step(
                f"{column}_{number}", f"Round {number}: a score column, {column}",
                (
                    "datacomp-flyt", "score", "--scorer", scorer, "--column", column, *flags,
                    "--metadata_dir", f"{folder}/metadata", "--scores_dir", f"{folder}/scores",
                ),
            )  # fmt: skip
        yield self._module(
            "scores", f"Round {number}: a score column, model_info_nce",
            "--score", "info_nce", "--metadata_dir", f"{folder}/metadata",
            "--out", f"{folder}/scores", "--seed", str(self.settings.seed),
            "--column", "model_info_nce", *self._info_nce_flags(number), name=f"info_nce_{number}",
        )  # fmt: skip

    def _judge(self, number: int) -> Iterator[Step]:
        """What the round's mix is like, and its scores, if it has any."""
        labels: tuple[str, ...] = ()
        if self.labels is not None:
            labels = ("--labels", self.labels, "--noise_kinds", *self.noise_kinds)
        yield self._module(
            "diagnostics", f"Round {number}: what its mix and its scores are like",
            "--run_dir", self.out, "--round", str(number), "--seed", str(self.settings.seed),
            *labels, name=f"diagnostics_{number}", aside=True,
        )  # fmt: skip
        if self.reports and number:
            before = self.folder(number - 1)
            # round 0's mix is the pool, and all of its tars: more than the report can know
            former = (f"round {number - 1}={before}/{MIX}",) if number > 1 else ()
            yield Step(
                f"report_{number}", f"Round {number}: a page of what its mix has",
                (
                    "datacomp-flyt", "report", "--metadata_dir", f"{before}/metadata",
                    "--scores_dir", f"{before}/scores", "--shards_dir", self.trainer.shards_dir,
                    "--subset", *former, f"round {number}={self.folder(number)}/{MIX}",
                    "--out", f"{self.folder(number)}/report",
                ),
                aside=True,
            )  # fmt: skip
