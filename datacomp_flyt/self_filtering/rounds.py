"""A run as steps: round after round of training, embedding, scoring and selecting.

RUN/round_k/subset.npy     the subset that round k trains on; round 0's is the whole pool
    confident.npy          the part of it that was selected by score
    runs/                  the trainer's own folders
    metadata/ scores/      the pool's embeddings and scores by the round's model
    diagnostics.json report/
RUN/subset.npy             the subset that the last scores select
RUN/finished.json          the note that the run has finished
RUN/report/                all rounds on one page
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from datacomp_flyt.self_filtering.next_subset import COLUMN, SUBSET, half_file
from datacomp_flyt.self_filtering.settings import TWO_MODELS, Settings
from datacomp_flyt.self_filtering.trainer_command import TrainerCommand, checkpoint_of
from datacomp_flyt.steps import Step
from datacomp_flyt.tars.shards import tars_in

MODEL_COLUMNS = ("model_alignment", "model_info_nce", "model_vas")
"""Score columns that the closed loop makes of each round's model, beside external ones."""

_NORM_SIM = "model_norm_sim"


@dataclass(frozen=True)
class Run:
    """A planned run.

    Attributes:
        out: the run's folder, as given.
        settings: the settings of the rounds.
        trainer: the user's trainer command.
        model: the model that the trainer trains: open_clip's name, or a JSON file.
        model_config: the value of `train_clip --model_config`, or None.
        hook: further flags of `train_clip`.
        downstream_dir: closed loop: labelled tars.
        scores_dir, score_columns: closed loop: external score tables, and their columns to use.
        flyt_flags: closed loop: further flags of `datacomp-flyt train`.
        labels, noise_kinds: a table of `uid` and `kind` to judge by, and the kinds that are noise.
        train_last: also train on the last subset.
        keep_embeddings: keep a round's npz after the pool is scored.
        reports: make a page for each round and one for all.
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

    def folder(self, round_index: int) -> str:
        """Return the folder of a round."""
        return f"{self.out}/round_{round_index}"

    def steps(self) -> Iterator[Step]:
        """Yield all steps in order.

        Raises:
            InputError: see `TrainerCommand.train`.
        """
        last = self.settings.rounds
        yield _module_step(
            "initial_subset", "Round 0: the subset is the whole pool",
            "--shards_dir", self.trainer.shards_dir, "--out", self.folder(0),
            "--draws", str(self.settings.samples_per_round),
            "--seed", str(self.settings.seed), *self._halves_flag,
        )  # fmt: skip
        for round_index in range(last):
            yield from self._round(round_index)
        yield _module_step(
            "finalize", "The last subset is the result",
            "--run_dir", self.out, "--rounds", str(last),
            name=f"finalize_{last}", aside=True, again=True,
        )  # fmt: skip
        if self.train_last:
            yield from self._train(last)
        yield from self._diagnose(last)
        if self.reports:
            yield _module_step(
                "rounds_page", "All rounds on one page",
                "--run_dir", self.out, "--rounds", str(last), aside=True, again=True,
            )  # fmt: skip

    def _round(self, round_index: int) -> Iterator[Step]:
        """Train, embed, score, select the next round's subset, and judge."""
        yield from self._train(round_index)
        yield self._embed(round_index)
        if self.settings.is_closed_loop:
            yield from self._learn(round_index)
        else:
            yield self._score(round_index)
        yield self._next_subset(round_index + 1)
        yield from self._diagnose(round_index)
        if not self.keep_embeddings:
            yield _module_step(
                "delete_embeddings", f"Round {round_index}: its embeddings are no longer needed",
                self.folder(round_index), name=f"delete_embeddings_{round_index}",
            )  # fmt: skip

    @property
    def _halves_flag(self) -> tuple[str, ...]:
        return ("--halves",) if self.settings.score in TWO_MODELS else ()

    def _train(self, round_index: int) -> Iterator[Step]:
        """Train the round's model; or two, each on its half, with half of the samples each."""
        settings, folder = self.settings, self.folder(round_index)
        config = () if self.model_config is None else ("--model_config", self.model_config)
        for model in settings.models:
            subset = SUBSET if model == "model" else half_file(model)
            start = checkpoint_of(f"{self.folder(round_index - 1)}/runs", model)
            command = self.trainer.train(
                model,
                f"{folder}/runs",
                settings.samples_per_round // len(settings.models),
                start if settings.continued and round_index else None,
            )
            title = "CLIP" if model == "model" else f"Model {model}"
            seed = ("--shuffle_seed", str(settings.seed))
            words = ("train_clip", *config, "--subset", f"{folder}/{subset}", *seed, *self.hook)
            yield Step(
                f"train_{round_index}_{model}", f"Round {round_index}: {title}, on its subset",
                ("datacomp-flyt", *words, "--", *command), together=True,
            )  # fmt: skip

    def _embed(self, round_index: int) -> Step:
        folder = self.folder(round_index)
        encoders: list[str] = []
        for model in self.settings.models:
            checkpoint = checkpoint_of(f"{folder}/runs", model)
            encoders += ["--encoder", f"{model}={self.model}:{checkpoint}"]
        return Step(
            f"embed_{round_index}", f"Round {round_index}: the pool's embeddings",
            (
                "datacomp-flyt", "embed", "--shards_dir", self.trainer.shards_dir,
                "--metadata_dir", f"{folder}/metadata", *encoders,
            ),
        )  # fmt: skip

    def _score(self, round_index: int) -> Step:
        settings, folder = self.settings, self.folder(round_index)
        name, title = f"score_{round_index}", f"Round {round_index}: scores of the pool"
        if settings.score == "info_nce":
            return self._column_step(name, title, round_index, COLUMN, self._info_nce(round_index))
        subsets: tuple[str, ...] = ()
        if settings.score in TWO_MODELS:
            first = 0 if settings.continued else round_index
            rounds = range(first, round_index + 1)
            subsets = ("--subsets", *(f"{self.folder(k)}/{SUBSET}" for k in rounds))
        return _module_step(
            "scores", title, "--score", settings.score, "--metadata_dir", f"{folder}/metadata",
            "--out", f"{folder}/scores", "--seed", str(settings.seed), *subsets, name=name,
        )  # fmt: skip

    def _info_nce(self, round_index: int) -> tuple[str, ...]:
        """Return the scorer of info_nce and its flags."""
        settings = self.settings
        temperature = ("--temperature", str(settings.temperature))
        if settings.temperature is None:
            checkpoint = checkpoint_of(f"{self.folder(round_index)}/runs", "model")
            temperature = ("--temperature_of", checkpoint)
        return (
            *("neg_clip_loss", "--arch", "model", *temperature),
            *("--batch_size", str(settings.info_nce_batch)),
            *("--num_partitions", str(settings.info_nce_partitions), "--seed", str(settings.seed)),
        )

    def _column_step(
        self, name: str, title: str, round_index: int, column: str, scorer: tuple[str, ...]
    ) -> Step:
        """Return the step that makes a score column of the round's npz.

        Args:
            scorer: the scorer's name and its flags.
        """
        folder = self.folder(round_index)
        pool = ("--metadata_dir", f"{folder}/metadata", "--scores_dir", f"{folder}/scores")
        words = ("score", "--scorer", scorer[0], "--column", column, *scorer[1:], *pool)
        return Step(name, title, ("datacomp-flyt", *words))

    def _next_subset(self, round_index: int) -> Step:
        """Return the step that makes a round's subset of what the round before has scored."""
        settings, before = self.settings, self.folder(round_index - 1)
        source = ("--scores_dir", f"{before}/scores")
        if settings.is_closed_loop:
            source = ("--selected", f"{before}/selected.npy")
        return _module_step(
            "next_subset", f"Round {round_index - 1}: the next subset",
            "--metadata_dir", f"{before}/metadata", *source,
            "--draws", str(settings.samples_per_round),
            "--confident_fraction", str(settings.confident_fraction),
            "--random_share", str(settings.random_share_of(round_index)),
            "--round", str(round_index),
            "--seed", str(settings.seed), *self._halves_flag, "--out", self.folder(round_index),
            name=f"next_subset_{round_index}",
        )  # fmt: skip

    def _learn(self, round_index: int) -> Iterator[Step]:
        """Closed loop: score columns by the round's model, a scoring model, Soft Cap Sampling."""
        settings, folder = self.settings, self.folder(round_index)
        selector = settings.selector
        pool: tuple[str, ...] = ("--metadata_dir", f"{folder}/metadata")
        if selector == "m_flyt":
            yield from self._columns(round_index)
            pool = (*pool, "--scores_dir", f"{folder}/scores")
            # pairs that could not be embedded have no score; all others do
            partial = "--allow_partial_scores"
            features: tuple[str, ...] = (*pool[2:], partial, "--score_columns", *self.columns)
        else:
            arrays = ("--embedding_arrays", "model_img", "model_txt")
            features = ("--features", "embeddings", *pool, *arrays)
        assert self.downstream_dir is not None
        preset = () if "--preset" in self.flyt_flags else ("--preset", f"{selector}_base")
        yield Step(
            f"learn_{round_index}",
            f"Round {round_index}: a scoring model, with the round's model as its reference",
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
        draws -= round(settings.random_share_of(round_index + 1) * draws)
        yield Step(
            f"select_{round_index}", f"Round {round_index}: Soft Cap Sampling of its scores",
            (
                "python", "-m", "baselines_plugin",
                "--name", selector, *pool,
                "--scoring_model", f"{folder}/flyt/scoring_model.safetensors",
                "--sampling", "scs", "--num_samples", str(draws), "--seed", str(settings.seed),
                "--repetition_penalty", str(settings.repetition_penalty),
                "--save_path", f"{folder}/selected.npy",
                "--save_scores", f"{folder}/scores/{COLUMN}/all.parquet",
            ),
        )  # fmt: skip

    @property
    def columns(self) -> tuple[str, ...]:
        """The score columns that M-FLYT mixes."""
        similarity = (_NORM_SIM,) if self._can_embed_downstream else ()
        return (*MODEL_COLUMNS, *similarity, *self.score_columns)

    @property
    def _can_embed_downstream(self) -> bool:
        """True if tars lie in the downstream folder itself, not in a folder for each task."""
        folder = self.downstream_dir
        flag = "--downstream_dir"
        return folder is not None and os.path.isdir(folder) and bool(tars_in(folder, flag))

    def _columns(self, round_index: int) -> Iterator[Step]:
        """Make the score columns of the round's model, and link the external ones."""
        folder = self.folder(round_index)
        if self.scores_dir is not None:
            yield _module_step(
                "link_external_scores", f"Round {round_index}: external score columns",
                "--scores_dir", self.scores_dir, "--out", f"{folder}/scores",
                name=f"link_external_scores_{round_index}",
            )  # fmt: skip
        scorers: dict[str, tuple[str, ...]] = {
            "model_alignment": ("clip_score", "--source", "npz", "--arch", "model"),
            "model_vas": ("vas", "--arch", "model"),
        }
        if self._can_embed_downstream:
            assert self.downstream_dir is not None
            checkpoint = checkpoint_of(f"{folder}/runs", "model")
            yield Step(
                f"embed_downstream_{round_index}",
                f"Round {round_index}: embeddings of downstream pictures",
                (
                    "datacomp-flyt", "embed", "--make_uids", "--shards_dir", self.downstream_dir,
                    "--metadata_dir", f"{folder}/downstream",
                    "--encoder", f"model={self.model}:{checkpoint}",
                ),
            )  # fmt: skip
            targets = ("--targets", f"{folder}/downstream", "--arch", "model")
            scorers[_NORM_SIM] = ("norm_sim", *targets)
        scorers["model_info_nce"] = self._info_nce(round_index)
        for column, scorer in scorers.items():
            title = f"Round {round_index}: the score column {column}"
            yield self._column_step(f"{column}_{round_index}", title, round_index, column, scorer)

    def _diagnose(self, round_index: int) -> Iterator[Step]:
        """Describe the round's subset, and its scores where it has any."""
        labels: tuple[str, ...] = ()
        if self.labels is not None:
            labels = ("--labels", self.labels, "--noise_kinds", *self.noise_kinds)
        yield _module_step(
            "diagnostics", f"Round {round_index}: diagnostics of its subset and scores",
            "--run_dir", self.out, "--round", str(round_index), "--seed", str(self.settings.seed),
            *labels, name=f"diagnostics_{round_index}", aside=True,
        )  # fmt: skip
        if self.reports and round_index:
            before = self.folder(round_index - 1)
            # round 0 may hold pairs without metadata, so the report cannot compare with it
            former = (f"round {round_index - 1}={before}/{SUBSET}",) if round_index > 1 else ()
            own = f"round {round_index}={self.folder(round_index)}/{SUBSET}"
            yield Step(
                f"report_{round_index}", f"Round {round_index}: a page about its subset",
                (
                    "datacomp-flyt", "report", "--metadata_dir", f"{before}/metadata",
                    "--scores_dir", f"{before}/scores", "--shards_dir", self.trainer.shards_dir,
                    "--subset", *former, own, "--out", f"{self.folder(round_index)}/report",
                ),
                aside=True,
            )  # fmt: skip


def _module_step(
    module: str,
    title: str,
    *flags: str,
    name: str | None = None,
    aside: bool = False,
    again: bool = False,
) -> Step:
    """Return the step that runs a module of this package."""
    words = ("python", "-m", f"datacomp_flyt.self_filtering.{module}", *flags)
    return Step(name or module, title, words, aside=aside, again=again)
