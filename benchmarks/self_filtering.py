"""Does a model do better on data that it chose itself, and in which way should it choose?

On the tour's pools with 40% noise, by seed, all at equal samples seen (`TOTAL`), of all trainings
together that lead to a final model:

1. Self-Filtering-style rounds against training on everything, on a random 30%, and on the top 30%
   by an outside CLIP, which was trained as long on another pool with a tenth of noise.
2. A pair scored by the model that was trained on it, or, cross-fitted, by one that was not: what
   each separates, over the pool and over the pairs that were trained on.
3. M-FLYT in a closed loop against M-FLYT once.

A run of R rounds spends the same on each, and `last_share` on its last mix. Models go on from the
weights of the round before, so the final one has seen TOTAL, with a learning rate that rises and
falls anew in each training; `everything_in_rounds` is that without selection. `restarted` models
begin anew. A seed decides pool and trainings; differences are paired by seed. Seed 0 is left out:
the confident fraction and TOTAL were chosen with it.

Goes on where it was when killed. `--table` only makes the tables of what is there.
"""

from __future__ import annotations

import argparse
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
    """A way to run the rounds.

    Attributes:
        settings: what differs from the defaults.
        rounds: R.
        last_share: of TOTAL, for the training on the last mix.
        continued: each training goes on from the one before.
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
        experiment: the tour's.
        total: samples seen.
    """

    experiment: Experiment
    total: int = TOTAL

    def steps(self, name: str) -> list[Step]:
        """What leads to the results of OTHERS, or of a variant."""
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
        """A subset by the CLIP score of a model of another pool."""
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
                "embed_outside", "Embeddings by it",
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
        """The rounds, and a training on what they ended with."""
        run = self.run(name, variant)
        model = run.settings.models[0]
        before = checkpoint_of(f"{run.folder(variant.rounds - 1)}/runs", model)
        samples = round(self.total * variant.last_share)
        start = before if variant.continued else None
        command = self.trainer().train(name, "runs", samples, start)
        last = self.train(name, command, ("--subset", f"{run.out}/mix.npy"))
        return [*(dataclasses.replace(s, name=f"{name}_{s.name}") for s in run.steps()), last]

    def run(self, name: str, variant: Variant) -> Run:
        """The rounds."""
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
        """The tour's own training, without what a round sets."""
        warm_up = ("--batch-size", str(BATCH_SIZE), "--epochs", "1", "--warmup", "30")
        words = (
            *("-m", "open_clip_train.main", "--model", MODEL, "--dataset-type", "webdataset"),
            *("--dataset-resampled", *warm_up, "--lr", "3e-3", "--beta1", "0.9", "--beta2", "0.98"),
            *("--eps", "1e-6", "--wd", "0.1", "--workers", "1", "--precision", "fp32"),
            *("--seed", str(self.experiment.seed), "--log-every-n-steps", "10"),
        )
        return TrainerCommand(words, self.experiment.shards)

    def train(self, name: str, command: Sequence[str], hook: Sequence[str] = ()) -> Step:
        """A training by that command."""
        words = ("train_clip", "--model_config", MODEL, *hook, "--", *command)
        return ours(f"train_{name}", name, *words)


def results_of(name: str) -> str:
    """Stem of the file of results."""
    return f"results_{name}"


def folder_of_rounds(name: str) -> str:
    """Where a variant's rounds are."""
    return f"runs/{name}_rounds"


def run_seed(folder: Path, plan: Plan, names: Sequence[str]) -> None:
    """What is not done yet of one seed."""
    place = folder_of(folder, plan.experiment)
    for name in names:
        seconds = run_steps(plan.steps(name), place, quiet=True)
        say(f"seed {plan.experiment.seed}, {name}: {sum(seconds.values()):.0f} s")


def read_results(place: Path) -> dict[str, Any]:
    """What each training of a seed reached."""
    paths = [place / f"{results_of(name)}.json" for name in ("others", *VARIANTS, *ABLATIONS)]
    found = [json.loads(path.read_text()) for path in paths if path.exists()]
    return {name: of for part in found for name, of in part.items()}


def read_rounds(place: Path, name: str) -> list[dict[str, Any]]:
    """A variant's diagnostics, round by round; none where it has not been run to its end."""
    if not (place / f"{results_of(name)}.json").exists():
        return []
    variant = (VARIANTS | ABLATIONS)[name]
    rounds = [place / folder_of_rounds(name) / f"round_{k}" for k in range(variant.rounds + 1)]
    return [json.loads((one / "diagnostics.json").read_text()) for one in rounds]


DIAGNOSTICS = {
    "clean_precision": ("confident", "clean_precision"),
    "noise_precision": ("confident", "noise_precision"),
    "noise_recall": ("confident", "noise_recall"),
    "auc": ("auc", "self_filtering"),
    "auc_in_mix": ("auc_in_mix", "self_filtering"),
    "auc_in_mix_seen": ("auc_in_mix", "self_filtering_seen"),
    "auc_in_mix_unseen": ("auc_in_mix", "self_filtering_unseen"),
}
"""What the tables have of a round's diagnostics."""


def by_round(places: Sequence[Path]) -> dict[str, Any]:
    """By variant and diagnostic, the figures of each round; None where there is none."""
    found: dict[str, Any] = {}
    for name in (*VARIANTS, *ABLATIONS):
        runs = [rounds for place in places if (rounds := read_rounds(place, name))]
        for diagnostic, (part, key) in DIAGNOSTICS.items() if runs else ():
            rows = [
                [one.get(part, {}).get(key) for one in same] for same in zip(*runs, strict=True)
            ]
            means = [mean_and_error(row) if None not in row else None for row in rows]
            if any(means):
                found.setdefault(diagnostic, {})[name] = means
    return found


def unseen_less_seen(places: Sequence[Path]) -> list[dict[str, Any]]:
    """By round, how much better a pair is judged by the model that has not seen it: AUC, paired."""
    runs = [rounds[:-1] for place in places if (rounds := read_rounds(place, "cross_fitted"))]
    aucs = [[one["auc_in_mix"] for one in same] for same in zip(*runs, strict=True)]
    return [
        mean_and_error([of[f"{OURS}_unseen"] - of[f"{OURS}_seen"] for of in same]) for same in aucs
    ]


def table_of_rounds(found: Mapping[str, Any]) -> str:
    """As the page on self-filtering has them."""
    columns = range(ROUNDS + 1)
    lines: list[str] = []
    for diagnostic, of in found.items():
        lines += ["", f"| {diagnostic}, round | {' | '.join(map(str, columns))} |"]
        lines.append("|---" * (len(columns) + 1) + "|")
        for name, rounds in of.items():
            cells = [cell(one) if one else "" for one in rounds]
            lines.append(
                "| " + " | ".join([name, *cells, *[""] * (len(columns) - len(cells))]) + " |"
            )
    return "\n".join(lines)


def main() -> None:
    """Print one JSON line, and tables before it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("self_filtering_output"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--ablation_seeds", type=int, default=2)
    parser.add_argument("--noise", type=float, default=0.4)
    parser.add_argument("--pairs", type=int, default=Experiment.pairs, help="of the pool")
    parser.add_argument("--only", nargs="+", help="of the variants, or `others`")
    parser.add_argument("--parallel", type=int, default=2, help="seeds at a time")
    parser.add_argument("--smoke", action="store_true", help="next to no work: does it run?")
    parser.add_argument("--table", action="store_true", help="only of what is there")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    plans = [Plan(Experiment(args.noise, seed, args.pairs)) for seed in args.seeds]
    if args.smoke:
        plans = [Plan(Experiment(args.noise, 0, pairs=400, m_flyt_steps=2), 1024)]
    places = [folder_of(args.folder, plan.experiment) for plan in plans]
    parts = [(plan, args.only or ("others", *VARIANTS)) for plan in plans]
    if not args.only:
        parts += [(plan, tuple(ABLATIONS)) for plan in plans[: args.ablation_seeds]]
    if not args.table:
        with ThreadPoolExecutor(args.parallel) as executor:
            list(executor.map(lambda part: run_seed(args.folder, *part), parts))
    runs = [read_results(place) for place in places]
    found = compare([run for run in runs if OURS in run], OURS)
    loop = [{CLOSED: run[CLOSED], ONCE: run[ONCE]} for run in runs if {CLOSED, ONCE} <= run.keys()]
    closed, rounds, unseen = compare(loop, CLOSED), by_round(places), unseen_less_seen(places)
    say(f"{table(found)}\n\nThe closed loop is ours:\n{table(closed)}\n{table_of_rounds(rounds)}")
    say(f"AUC of unseen pairs less that of seen ones, by round: {'; '.join(map(cell, unseen))}")
    print_result(
        "self_filtering",
        {
            "noise": args.noise,
            "pairs": args.pairs,
            "total": TOTAL,
            "rounds": ROUNDS,
            "selections": found,
            "closed_loop": closed,
            "by_round": rounds,
            "unseen_less_seen": unseen,
        },
    )


if __name__ == "__main__":
    main()
