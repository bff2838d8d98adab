"""An experiment on one noisy pool as steps, from the pool to models trained on selections.

All paths are relative to the experiment's folder, in which its commands run:

    shards/ downstream/ evaluation/ kinds.parquet    the pool, and the sets beside it
    runs/NAME/                                       open_clip's own trainings, one a selection
    metadata/ downstream_npz/ scores/                embeddings and scores
    m_flyt*/ subsets/NAME.npy                        scoring models, and selections
    results.json report/                             the models' figures, and a page
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from datacomp_flyt.demo.noisy_pool import FACTS, MODEL, PAIRS_PER_SHARD
from datacomp_flyt.steps import Step

BATCH_SIZE = 128
UNFILTERED = "no_filter"
CLIP_SCORE = "clip_score_ref"
COLUMNS = (CLIP_SCORE, "negCLIPLoss", "normsim_inf", "vas", "IN1K-Classifier", *FACTS)
_POOL_FLAGS = ("--metadata_dir", "metadata", "--scores_dir", "scores")
_REFERENCE = "runs/reference/checkpoints/epoch_latest.pt"


def top(fraction: float) -> tuple[str, ...]:
    """Return flags of the sampling that keeps a fraction of the pool once."""
    return ("--sampling", "top_fraction", "--fraction", str(fraction))


def mixed(folder: str = "m_flyt") -> tuple[str, ...]:
    """Return flags of the M-FLYT method with the scoring model of a folder."""
    return ("--name", "m_flyt", "--scoring_model", f"{folder}/scoring_model.safetensors")


def single(column: str) -> tuple[str, ...]:
    """Return flags of the top 30% by one score, DataComp's own fraction for the CLIP score."""
    return ("--name", "top_fraction", "--column", column, "--fraction", "0.3")


def ours(name: str, title: str, command: str, *flags: str) -> Step:
    """Return a step that is a command of `datacomp-flyt`."""
    return Step(name, title, ("datacomp-flyt", command, *flags))


@dataclass(frozen=True)
class Experiment:
    """The settings of an experiment, and its steps.

    Attributes:
        noise: the share of the pool's pairs that are spoiled.
        seed: the seed of the pool, the reference, M-FLYT and the trainings.
        pairs: the number of pairs in the pool.
        samples_seen: samples of each training on a selection, and draws of a sampled subset.
        reference_samples_seen: samples of the reference model's training.
        m_flyt_steps: training steps of M-FLYT.
    """

    noise: float
    seed: int
    pairs: int = 10_000
    samples_seen: int = 25_600
    reference_samples_seen: int = 64_000
    m_flyt_steps: int = 200

    def soft_cap(self, repetition_penalty: float = 0.15) -> tuple[str, ...]:
        """Return flags of Soft Cap Sampling, with as many draws as training sees samples."""
        return (
            *("--sampling", "scs", "--num_samples", str(self.samples_seen), "--seed", "0"),
            *("--sampling_batch_size", str(BATCH_SIZE)),
            *("--repetition_penalty", str(repetition_penalty)),
        )

    @property
    def shards(self) -> str:
        """The pool's tars as open_clip's trainer takes them."""
        return f"shards/{{{0:08d}..{(self.pairs - 1) // PAIRS_PER_SHARD:08d}}}.tar"

    def pool(self) -> list[Step]:
        """Return the step that makes the pool."""
        flags = ("--noise", str(self.noise), "--seed", str(self.seed), "--pairs", str(self.pairs))
        module = ("python", "-m", "datacomp_flyt.demo.noisy_pool", "--out", ".")
        return [
            Step("pool", f"A pool of {self.pairs:,} pairs, {self.noise:.0%} noise", module + flags)
        ]

    def scores(self) -> list[Step]:
        """Return the steps that train CLIP on the whole pool, embed it and score it."""
        encoder = ("--encoder", f"ref={MODEL}:{_REFERENCE}")
        scorers = {
            "clip_score": ("--source", "npz"),
            "neg_clip_loss": (
                *("--temperature", "0.07", "--batch_size", str(PAIRS_PER_SHARD)),
                *("--num_partitions", "3"),
            ),
            "norm_sim": ("--targets", "downstream_npz"),
            "vas": (),
        }
        return [
            self.train(
                "reference", "A reference CLIP, trained on the whole pool by open_clip's trainer",
                (), self.reference_samples_seen,
            ),
            ours(
                "embed_pool", "Embeddings of the pool by that model",
                "embed", "--shards_dir", "shards", "--metadata_dir", "metadata", *encoder,
            ),
            ours(
                "embed_downstream", "The same of the downstream pictures",
                "embed", "--make_uids", "--shards_dir", "downstream",
                "--metadata_dir", "downstream_npz", *encoder,
            ),
            *(
                ours(
                    f"score_{name}", f"A score column: {name}",
                    "score", "--scorer", name, "--arch", "ref", *flags, *_POOL_FLAGS,
                )
                for name, flags in scorers.items()
            ),
            ours(
                "train_classifier", "A linear classifier of downstream pictures against the pool's",
                "train_classifier", "--positives", "downstream_npz", "--negatives", "metadata",
                "--arrays", "ref_img", "--steps", "4000", "--out", "classifier.safetensors",
            ),
            ours(
                "score_linear_classifier", "A score column: what it says of the pool's pictures",
                "score", "--scorer", "linear_classifier", "--classifier", "classifier.safetensors",
                "--arrays", "ref_img", *_POOL_FLAGS,
            ),
        ]  # fmt: skip

    def m_flyt(
        self,
        name: str,
        title: str,
        columns: Sequence[str] = COLUMNS,
        changes: Mapping[str, str | None] | None = None,
    ) -> Step:
        """Return the step that learns a mix of columns, `NAME/scoring_model.safetensors`.

        Args:
            name: the folder, which is also the step's name.
            title: the step's title.
            columns: the score columns to mix.
            changes: flags that differ from the experiment's, with their values; None for flags
                without a value.
        """
        settings: dict[str, str | None] = {
            "--num_steps": str(self.m_flyt_steps),
            "--upstream_batch_size": "128",
            "--downstream_batch_size": "100",
            "--scoring_lr": "0.05",
            "--reference_lr": "0.0003",
            "--reference_model": MODEL,
            "--reference_init": _REFERENCE,
            "--num_workers": "1",
            **(changes or {}),
        }
        flags = [word for pair in settings.items() for word in pair if word is not None]
        return ours(
            name, title,
            "train", *flags, "--preset", "tiny", "--seed", str(self.seed),
            "--train_data", "shards", "--scores_dir", "scores", "--score_columns", *columns,
            "--downstream_dir", "downstream", "--output_dir", name, "--resume",
        )  # fmt: skip

    def select(self, name: str, title: str, *flags: str) -> Step:
        """Return the step that selects a subset by a method of the plugin, `subsets/NAME.npy`."""
        words = ("python", "-m", "baselines_plugin", *flags, *_POOL_FLAGS)
        return Step(f"select_{name}", title, (*words, "--save_path", f"subsets/{name}.npy"))

    def train(
        self,
        name: str,
        title: str,
        hook: Sequence[str] | None = None,
        samples_seen: int | None = None,
    ) -> Step:
        """Return the step that trains CLIP from scratch by open_clip's trainer, in `runs/NAME`.

        Args:
            name: the name of the training, and of the subset.
            title: the step's title.
            hook: flags of `train_clip`; None to train on `subsets/NAME.npy`, () on the whole pool.
            samples_seen: the number of samples; None for the experiment's.
        """
        hook = ("--subset", f"subsets/{name}.npy") if hook is None else hook
        return ours(
            f"train_{name}", title,
            "train_clip", "--model_config", MODEL, *hook, "--", "-m", "open_clip_train.main",
            "--model", MODEL, "--train-data", self.shards, "--dataset-type", "webdataset",
            "--dataset-resampled", "--train-num-samples", str(samples_seen or self.samples_seen),
            "--batch-size", str(BATCH_SIZE), "--epochs", "1", "--warmup", "30", "--lr", "3e-3",
            "--beta1", "0.9", "--beta2", "0.98", "--eps", "1e-6", "--wd", "0.1",
            "--workers", "1", "--precision", "fp32", "--seed", str(self.seed),
            "--log-every-n-steps", "10", "--save-most-recent",
            "--logs", "runs", "--name", name, "--resume", "latest",
        )  # fmt: skip

    def evaluate(self, names: Sequence[str], out: str = "results") -> Step:
        """Return the step that evaluates trained models by zero-shot accuracy and retrieval."""
        checkpoints = [f"{name}=runs/{name}/checkpoints/epoch_latest.pt" for name in names]
        module = ("python", "-m", "datacomp_flyt.demo.evaluate", "--evaluation_dir", "evaluation")
        words = (*module, "--out", f"{out}.json", "--checkpoint", *checkpoints)
        return Step(f"evaluate_{out}", "Zero-shot accuracy and retrieval of each model", words)

    def report(self, names: Sequence[str], scoring_model: str) -> Step:
        """Return the step that makes the HTML page of selections, `report/index.html`."""
        return ours(
            "report", "A page of what was selected",
            "report", *_POOL_FLAGS, "--shards_dir", "shards", "--scoring_model", scoring_model,
            "--subset", *(f"{name}=subsets/{name}.npy" for name in names), "--out", "report",
        )  # fmt: skip
