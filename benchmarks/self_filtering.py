"""Compares models that are trained on data which they selected themselves.

The comparisons run on the tour's pools with 40% noise, for each seed. All trainings that lead to
a final model see TOTAL samples together:

1. Self-Filtering rounds against training on the whole pool, on a random 30%, and on the top 30% by
   an outside CLIP, which was trained for as many samples on another pool with 10% noise.
2. Scores by a model that was trained on the pair against cross-fitted scores, by a model that was
   not: their AUC over the pool and over the trained pairs.
3. M-FLYT in every round against M-FLYT once.

The last subset of a run gets the share `last_share` of TOTAL, and the R rounds share the rest
equally. A model continues from the weights of the previous round, so the final model has seen TOTAL
samples, with one learning rate schedule for each training. `everything_in_rounds` does the same
without selection, and `restarted` models start from scratch. A seed decides pool and trainings, and
differences are paired by seed. Seed 0 is left out, since the confident fraction and TOTAL were
chosen with it.

A killed run resumes. `--table` only prints the tables of finished parts.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import print_result, say
from benchmarks.seeds import cell, compare, mean_and_error, table
from datacomp_flyt.demo.experiment import BATCH_SIZE, UNFILTERED, Experiment, ours, single
from datacomp_flyt.demo.noisy_pool import FACTS, MODEL, NOISE, RANDOM
from datacomp_flyt.demo.tour import folder_of
from datacomp_flyt.exits import Parser
from datacomp_flyt.self_filtering.next_subset import SUBSET
from datacomp_flyt.self_filtering.rounds import Run
from datacomp_flyt.self_filtering.settings import Settings
from datacomp_flyt.self_filtering.trainer_command import TrainerCommand, checkpoint_of
from datacomp_flyt.steps import Step, run_steps

TOTAL, ROUNDS = 64_000, 3
OUTSIDE, OURS = "outside_clip_30", "self_filtering"
CLOSED, ONCE = "m_flyt_closed", "m_flyt_once"
OTHERS = (UNFILTERED, RANDOM, OUTSIDE)


@dataclass(frozen=True)
class Variant:
    """A variant of the rounds.

    Attributes:
        settings: settings that differ from the defaults.
        rounds: the number of rounds R.
        last_share: the share of TOTAL for the training on the last subset.
        continued: True if each training continues from the previous one.
    """

    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rounds: int = ROUNDS
    last_share: float = 1 / (ROUNDS + 1)
    continued: bool = True


_HALF = {"confident_fraction": 0.5}  # the best of 0.3 and 0.5 on the pool of seed 0
_M_FLYT = {"selector": "m_flyt", "random_share": 0.0}
_ONCE = ROUNDS / (ROUNDS + 1)
VARIANTS = {
    OURS: Variant(_HALF),
    "everything_in_rounds": Variant({"random_share": 1.0}),
    "self_filtering_once": Variant(_HALF, rounds=1, last_share=_ONCE),
    "cross_fitted": Variant({**_HALF, "score": "cross_fitted"}),
    CLOSED: Variant(_M_FLYT),
    ONCE: Variant(_M_FLYT, rounds=1, last_share=_ONCE),
}
ABLATIONS = {
    "restarted": Variant(_HALF, last_share=0.55, continued=False),
    "info_nce": Variant({**_HALF, "score": "info_nce", "info_nce_batch": 1000}),
    "memorisation": Variant({**_HALF, "score": "memorisation"}),
    "confident_30": Variant(),
    "no_random_share": Variant({**_HALF, "random_share": 0.0}),
    "half_random_share": Variant({**_HALF, "random_share": 0.5}),
    "linear_share": Variant({**_HALF, "random_schedule": "linear"}),
}


@dataclass(frozen=True)
class Plan:
    """The comparison on one pool.

    Attributes:
        experiment: the tour's experiment.
        total: the number of samples seen.
    """

    experiment: Experiment
    total: int = TOTAL

    def steps(self, name: str) -> list[Step]:
        """Return the steps that lead to the results of OTHERS, or of a variant."""
        experiment = self.experiment
        if name == "others":
            trainings = [
                experiment.train(UNFILTERED, UNFILTERED, (), self.total),
                *(experiment.train(n, n, samples_seen=self.total) for n in (RANDOM, OUTSIDE)),
            ]
            steps = [*self.outside(), *trainings]
        else:
            steps = self.variant(name, (VARIANTS | ABLATIONS)[name])
        names = OTHERS if name == "others" else (name,)
        return [*experiment.pool(), *steps, experiment.evaluate(names, results_of(name))]

    def outside(self) -> list[Step]:
        """Return the steps that select by the CLIP score of a model of another pool."""
        experiment, noise = self.experiment, 0.1
        other = dataclasses.replace(experiment, noise=noise, seed=1000 + experiment.seed)
        (pool,) = other.pool()
        words = list(pool.words)
        words[words.index("--out") + 1] = "outside"
        trainer = dataclasses.replace(self.trainer(), shards_dir=f"outside/{experiment.shards}")
        checkpoint = checkpoint_of("runs", "outside")
        scores = ("--metadata_dir", "outside_npz", "--scores_dir", "outside_scores")
        return [
            dataclasses.replace(pool, name="outside_pool", words=tuple(words)),
            self.train("outside", trainer.train("outside", "runs", self.total, None)),
            ours(
                "embed_outside", "Embeddings by that model",
                "embed", "--shards_dir", "shards", "--metadata_dir", "outside_npz",
                "--encoder", f"ref={MODEL}:{checkpoint}",
            ),
            ours(
                "score_outside", "Its CLIP score",
                *("score", "--scorer", "clip_score", "--arch", "ref", "--source", "npz"), *scores,
            ),
            Step(
                f"select_{OUTSIDE}", "Its best 30%",
                (
                    *("python", "-m", "baselines_plugin", *single("clip_score_ref"), *scores),
                    *("--save_path", f"subsets/{OUTSIDE}.npy"),
                ),
            ),
        ]  # fmt: skip

    def variant(self, name: str, variant: Variant) -> list[Step]:
        """Return the steps of the rounds, and a training on the last subset."""
        run = self.run(name, variant)
        model = run.settings.models[0]
        before = checkpoint_of(f"{run.folder(variant.rounds - 1)}/runs", model)
        samples = round(self.total * variant.last_share)
        start = before if variant.continued else None
        command = self.trainer().train(name, "runs", samples, start)
        last = self.train(name, command, ("--subset", f"{run.out}/{SUBSET}"))
        return [*(dataclasses.replace(s, name=f"{name}_{s.name}") for s in run.steps()), last]

    def run(self, name: str, variant: Variant) -> Run:
        """Return the rounds of a variant."""
        samples = round(self.total * (1 - variant.last_share) / variant.rounds)
        closed = "selector" in variant.settings
        flyt = (
            *("--preset", "tiny", "--num_steps", str(self.experiment.m_flyt_steps)),
            *("--upstream_batch_size", "128", "--downstream_batch_size", "100"),
            *("--scoring_lr", "0.05", "--reference_lr", "0.0003", "--num_workers", "1"),
        )
        settings = Settings(
            samples, rounds=variant.rounds, seed=self.experiment.seed,
            continued=variant.continued, **variant.settings,
        )  # fmt: skip
        return Run(
            folder_of_rounds(name), settings, self.trainer(), MODEL, model_config=MODEL,
            downstream_dir="downstream" if closed else None,
            scores_dir="scores" if closed else None,
            score_columns=FACTS if closed else (),
            flyt_flags=flyt if closed else (),
            labels="kinds.parquet", noise_kinds=tuple(NOISE), reports=False,
        )  # fmt: skip

    def trainer(self) -> TrainerCommand:
        """Return the tour's own training, without the flags that a round sets."""
        warm_up = ("--batch-size", str(BATCH_SIZE), "--epochs", "1", "--warmup", "30")
        words = (
            *("-m", "open_clip_train.main", "--model", MODEL, "--dataset-type", "webdataset"),
            *("--dataset-resampled", *warm_up, "--lr", "3e-3", "--beta1", "0.9", "--beta2", "0.98"),
            *("--eps", "1e-6", "--wd", "0.1", "--workers", "1", "--precision", "fp32"),
            *("--seed", str(self.experiment.seed), "--log-every-n-steps", "10"),
        )
        return TrainerCommand(words, self.experiment.shards)

    def train(self, name: str, command: Sequence[str], hook: Sequence[str] = ()) -> Step:
        """Return a training step with a trainer's command."""
        words = ("train_clip", "--model_config", MODEL, *hook, "--", *command)
        return ours(f"train_{name}", name, *words)


def results_of(name: str) -> str:
    """Return the stem of the file of results."""
    return f"results_{name}"


def folder_of_rounds(name: str) -> str:
    """Return the folder of a variant's rounds."""
    return f"runs/{name}_rounds"


def run_seed(folder: Path, plan: Plan, names: Sequence[str]) -> None:
    """Run the unfinished parts of one seed."""
    seed_folder = folder_of(folder, plan.experiment)
    for name in names:
        seconds = run_steps(plan.steps(name), seed_folder, quiet=True)
        say(f"seed {plan.experiment.seed}, {name}: {sum(seconds.values()):.0f} s")


def read_results(seed_folder: Path) -> dict[str, Any]:
    """Return the figures of each training of a seed, by name."""
    names = ("others", *VARIANTS, *ABLATIONS)
    paths = [seed_folder / f"{results_of(name)}.json" for name in names]
    parts = [json.loads(path.read_text()) for path in paths if path.exists()]
    return {name: figures for part in parts for name, figures in part.items()}


def read_rounds(seed_folder: Path, name: str) -> list[dict[str, Any]]:
    """Return a variant's diagnostics by round; an empty list for an unfinished run."""
    if not (seed_folder / f"{results_of(name)}.json").exists():
        return []
    variant = (VARIANTS | ABLATIONS)[name]
    run = seed_folder / folder_of_rounds(name)
    rounds = [run / f"round_{index}" for index in range(variant.rounds + 1)]
    return [json.loads((folder / "diagnostics.json").read_text()) for folder in rounds]


DIAGNOSTICS = {
    "clean_precision": ("confident", "clean_precision"),
    "noise_precision": ("confident", "noise_precision"),
    "noise_recall": ("confident", "noise_recall"),
    "auc": ("auc", "self_filtering"),
    "auc_in_subset": ("auc_in_subset", "self_filtering"),
    "auc_in_subset_seen": ("auc_in_subset", "self_filtering_seen"),
    "auc_in_subset_unseen": ("auc_in_subset", "self_filtering_unseen"),
}
"""Figures of the tables, by their path in a round's diagnostics."""


def by_round(seed_folders: Sequence[Path]) -> dict[str, Any]:
    """Return figures by diagnostic, variant and round; None for a round without a figure."""
    figures: dict[str, Any] = {}
    for name in (*VARIANTS, *ABLATIONS):
        runs = [rounds for folder in seed_folders if (rounds := read_rounds(folder, name))]
        for diagnostic, (part, key) in DIAGNOSTICS.items() if runs else ():
            rows = [
                [one.get(part, {}).get(key) for one in same] for same in zip(*runs, strict=True)
            ]
            means = [mean_and_error(row) if None not in row else None for row in rows]
            if any(means):
                figures.setdefault(diagnostic, {})[name] = means
    return figures


def unseen_less_seen(seed_folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Return for each round the AUC by models that did not see a pair, minus the AUC by others."""
    name = "cross_fitted"
    runs = [rounds[:-1] for folder in seed_folders if (rounds := read_rounds(folder, name))]
    aucs = [[one["auc_in_subset"] for one in same] for same in zip(*runs, strict=True)]
    return [
        mean_and_error([auc[f"{OURS}_unseen"] - auc[f"{OURS}_seen"] for auc in same])
        for same in aucs
    ]


def table_of_rounds(figures: Mapping[str, Any]) -> str:
    """Format the figures of `by_round` as the tables of docs/self_filtering.md."""
    columns = range(ROUNDS + 1)
    lines: list[str] = []
    for diagnostic, variants in figures.items():
        lines += ["", f"| {diagnostic}, round | {' | '.join(map(str, columns))} |"]
        lines.append("|---" * (len(columns) + 1) + "|")
        for name, rounds in variants.items():
            cells = [cell(one) if one else "" for one in rounds]
            lines.append(
                "| " + " | ".join([name, *cells, *[""] * (len(columns) - len(cells))]) + " |"
            )
    return "\n".join(lines)


def main() -> None:
    """Print one JSON line, and tables before it."""
    parser = Parser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("self_filtering_output"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--ablation_seeds", type=int, default=2)
    parser.add_argument("--noise", type=float, default=0.4)
    parser.add_argument("--pairs", type=int, default=Experiment.pairs, help="pairs of the pool")
    parser.add_argument("--only", nargs="+", help="names of variants, or `others`")
    parser.add_argument("--parallel", type=int, default=2, help="seeds at a time")
    parser.add_argument(
        "--smoke", action="store_true", help="a small run, to check that the benchmark works"
    )
    parser.add_argument("--table", action="store_true", help="only print the finished parts")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    plans = [Plan(Experiment(args.noise, seed, args.pairs)) for seed in args.seeds]
    if args.smoke:
        plans = [Plan(Experiment(args.noise, 0, pairs=400, m_flyt_steps=2), 1024)]
    folders = [folder_of(args.folder, plan.experiment) for plan in plans]
    parts = [(plan, args.only or ("others", *VARIANTS)) for plan in plans]
    if not args.only:
        parts += [(plan, tuple(ABLATIONS)) for plan in plans[: args.ablation_seeds]]
    if not args.table:
        with ThreadPoolExecutor(args.parallel) as executor:
            list(executor.map(lambda part: run_seed(args.folder, *part), parts))
    runs = [read_results(folder) for folder in folders]
    selections = compare([run for run in runs if OURS in run], OURS)
    loop = [{CLOSED: run[CLOSED], ONCE: run[ONCE]} for run in runs if {CLOSED, ONCE} <= run.keys()]
    closed, rounds = compare(loop, CLOSED), by_round(folders)
    unseen = unseen_less_seen(folders)
    say(f"{table(selections)}\n\nThe closed loop is ours:\n{table(closed)}")
    say(table_of_rounds(rounds))
    say(f"AUC of unseen pairs less that of seen ones, by round: {'; '.join(map(cell, unseen))}")
    print_result(
        "self_filtering",
        {
            "noise": args.noise,
            "pairs": args.pairs,
            "total": TOTAL,
            "rounds": ROUNDS,
            "selections": selections,
            "closed_loop": closed,
            "by_round": rounds,
            "unseen_less_seen": unseen,
        },
    )


if __name__ == "__main__":
    main()
