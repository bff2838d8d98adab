"""Does a model do better on data that it chose itself, and in which way should it choose?

On the tour's pools with 40% noise, by seed, all at equal samples seen, of all trainings together
that lead to a final model (`TOTAL`):

1. Self-Filtering-style rounds against training on everything, on a random 30%, and on the top 30%
   of an outside CLIP score (the CLIP of the scores step, whose training is not counted: it is the
   "outside" model, trained on the pool with other chance).
2. Scores: alignment, symmetric InfoNCE, cross-fitted, memorisation: what each separates, over the
   pool and over the pairs of the mix, and where it leads.
3. M-FLYT in a closed loop against M-FLYT once, with columns of the same kinds; `m_flyt_once_equal`
   is trained as much less as its reference model was trained, `m_flyt_once` is not.

A run of R rounds spends TOTAL / (R + 1) on each round and as much on its last mix. `_continued`
models keep their weights, so their final model has seen TOTAL; others start anew, so theirs has
seen TOTAL / (R + 1), or, as `_last_long`, three fifths of TOTAL on the last mix after shorter
rounds. A seed decides pool and trainings; differences are paired by seed.

Goes on where it was when killed. `--table` only makes the tables of what is there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import print_result, say
from datacomp_flyt.demo.evaluate import METRICS
from datacomp_flyt.demo.experiment import BATCH_SIZE, UNFILTERED, Experiment, mixed, single
from datacomp_flyt.demo.noisy_pool import FACTS, MODEL, NOISE, RANDOM
from datacomp_flyt.demo.tour import folder_of
from datacomp_flyt.engines.steps import Step, run_steps
from datacomp_flyt.self_filtering.rounds import Run
from datacomp_flyt.self_filtering.settings import Settings
from datacomp_flyt.self_filtering.trainer_command import TrainerCommand, checkpoint_of

TOTAL, ROUNDS = 102_400, 3
OUTSIDE, ONCE, ONCE_EQUAL = "outside_clip_30", "m_flyt_once", "m_flyt_once_equal"
OURS = "alignment_continued"
M_FLYT_COLUMNS = ("clip_score_ref", "negCLIPLoss", "vas", "normsim_inf", *FACTS)


@dataclass(frozen=True)
class Variant:
    """A way to run the rounds.

    Attributes:
        settings: what differs from the defaults.
        last_share: of TOTAL for the training on the last mix.
    """

    settings: Mapping[str, Any]
    last_share: float = 1 / (ROUNDS + 1)


VARIANTS = {
    OURS: Variant({"continued": True}),
    "alignment_last_long": Variant({}, 0.6),
    "alignment": Variant({}),
    "info_nce_continued": Variant({"score": "info_nce", "continued": True}),
    "cross_fitted_last_long": Variant({"score": "cross_fitted"}, 0.6),
    "memorisation_last_long": Variant({"score": "memorisation"}, 0.6),
    "linear_share_continued": Variant({"continued": True, "random_schedule": "linear"}),
    "no_random_share_continued": Variant({"continued": True, "random_share": 0.0}),
    "m_flyt_closed": Variant({"selector": "m_flyt", "continued": True, "random_share": 0.0}),
}


@dataclass(frozen=True)
class Plan:
    """The comparison on one pool.

    Attributes:
        experiment: the tour's, whose samples_seen are `total`.
        total: samples seen.
        rounds: of each variant.
    """

    experiment: Experiment
    total: int = TOTAL
    rounds: int = ROUNDS

    def trainer(self) -> TrainerCommand:
        """The tour's own training, without what a round sets."""
        warm_up = ("--batch-size", str(BATCH_SIZE), "--epochs", "1", "--warmup", "30")
        words = (
            *("-m", "open_clip_train.main", "--model", MODEL, "--dataset-type", "webdataset"),
            *("--dataset-resampled", *warm_up, "--lr", "3e-3", "--beta1", "0.9", "--beta2", "0.98"),
            *("--eps", "1e-6", "--wd", "0.1", "--workers", "1", "--precision", "fp32"),
            *("--seed", str(self.experiment.seed), "--log-every-n-steps", "10"),
        )
        return TrainerCommand(words, "shards")

    def run(self, name: str) -> Run:
        """The rounds of a variant."""
        variant = VARIANTS[name]
        samples = round(self.total * (1 - variant.last_share) / self.rounds)
        closed = variant.settings.get("selector") == "m_flyt"
        flyt = (
            *("--preset", "tiny", "--num_steps", str(self.experiment.m_flyt_steps)),
            *("--upstream_batch_size", "128", "--downstream_batch_size", "100"),
            *("--scoring_lr", "0.05", "--reference_lr", "0.0003", "--num_workers", "1"),
        )
        settings = Settings(
            samples, rounds=self.rounds, seed=self.experiment.seed,
            **{"info_nce_batch": 1000, **variant.settings},
        )  # fmt: skip
        return Run(
            f"runs/{name}_rounds", settings, self.trainer(), MODEL, model_config=MODEL,
            downstream_dir="downstream" if closed else None,
            scores_dir="scores_given" if closed else None,
            score_columns=FACTS if closed else (),
            flyt_flags=flyt if closed else (),
            labels="kinds.parquet", noise_kinds=tuple(NOISE), reports=False,
            train_last=variant.settings.get("continued", False),
        )  # fmt: skip

    def variant_steps(self, name: str) -> tuple[list[Step], str]:
        """The steps of a variant, and its final checkpoint."""
        run, experiment = self.run(name), self.experiment
        steps = [dataclasses.replace(step, name=f"{name}_{step.name}") for step in run.steps()]
        if run.train_last:
            return steps, checkpoint_of(f"{run.folder(self.rounds)}/runs", "model")
        last = round(self.total * VARIANTS[name].last_share)
        steps.append(experiment.train(name, name, ("--subset", f"{run.out}/mix.npy"), last))
        return steps, checkpoint_of("runs", name)

    def steps(self) -> list[Step]:
        """All, with what they are compared with."""
        experiment = self.experiment
        given = ("python", "-m", "datacomp_flyt.self_filtering.given_scores")
        columns = [f"scores/{fact}" for fact in FACTS]
        steps = [
            *experiment.pool(),
            # before other columns are made beside them
            *(
                Step(
                    f"given_{n}", "Facts", (*given, "--scores_dir", c, "--out", f"scores_given/{n}")
                )
                for n, c in enumerate(columns)
            ),
            *experiment.scores(),
            experiment.m_flyt("m_flyt", "M-FLYT", M_FLYT_COLUMNS),
            experiment.select(OUTSIDE, OUTSIDE, *single("clip_score_ref")),
            experiment.select(ONCE, ONCE, *mixed(), *experiment.soft_cap()),
            experiment.train(UNFILTERED, UNFILTERED, (), self.total),
            *(experiment.train(n, n, samples_seen=self.total) for n in (RANDOM, OUTSIDE, ONCE)),
        ]
        once = ("--subset", f"subsets/{ONCE}.npy")
        left = self.total - experiment.reference_samples_seen
        steps.append(experiment.train(ONCE_EQUAL, ONCE_EQUAL, once, left))
        single_models = (UNFILTERED, RANDOM, OUTSIDE, ONCE, ONCE_EQUAL)
        checkpoints = {name: checkpoint_of("runs", name) for name in single_models}
        for name in VARIANTS:
            more, checkpoints[name] = self.variant_steps(name)
            steps += more
        module = ("python", "-m", "datacomp_flyt.demo.evaluate", "--evaluation_dir", "evaluation")
        named = [f"{name}={path}" for name, path in checkpoints.items()]
        words = (*module, "--out", "results.json", "--checkpoint", *named)
        return [*steps, Step("evaluate", "Zero-shot accuracy and retrieval", words)]


def read_run(place: Path, rounds: int) -> dict[str, Any]:
    """What each selection reached, and the diagnostics of each variant's rounds."""
    found: dict[str, Any] = {"results": json.loads((place / "results.json").read_text())}
    found["rounds"] = {
        name: [
            json.loads((place / f"runs/{name}_rounds/round_{k}/diagnostics.json").read_text())
            for k in range(rounds + 1)
        ]
        for name in VARIANTS
    }
    return found


def summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and standard error of each selection, and of what OURS has more, paired by seed."""
    found: dict[str, Any] = {}
    for name in runs[0]["results"]:
        found[name] = {}
        for metric in METRICS:
            values = [run["results"][name][metric] for run in runs]
            less = [run["results"][OURS][metric] - v for run, v in zip(runs, values, strict=True)]
            found[name][metric] = _mean(values)
            found[name][f"{metric}_below_ours"] = _mean(less)
    return found


def by_round(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """By variant and round: clean precision of the confident part, noise precision, AUC."""
    paths = {
        "clean_precision": ("confident", "clean_precision"),
        "noise_precision": ("confident", "noise_precision"),
        "auc": ("auc", "self_filtering"),
        "auc_in_mix": ("auc_in_mix", "self_filtering"),
        "auc_in_mix_seen": ("auc_in_mix", "self_filtering_seen"),
        "auc_in_mix_unseen": ("auc_in_mix", "self_filtering_unseen"),
    }
    found: dict[str, Any] = {}
    for variant in runs[0]["rounds"]:
        found[variant] = {}
        for name, (part, key) in paths.items():
            rounds = zip(*(run["rounds"][variant] for run in runs), strict=True)
            values = [[one.get(part, {}).get(key) for one in same] for same in rounds]
            means = [_mean(row) if None not in row else None for row in values]
            if any(means):
                found[variant][name] = means
    return found


def _mean(values: Sequence[float]) -> dict[str, Any]:
    array = np.array(values, np.float64)
    error = array.std(ddof=1) / len(array) ** 0.5 if len(array) > 1 else None
    return {"mean": float(array.mean()), "standard_error": error, "by_seed": array.tolist()}


def tables(found: Mapping[str, Any], rounds: Mapping[str, Any]) -> str:
    """As the page on self-filtering has them."""
    lines = ["| trained on | accuracy | less than ours | retrieval | less than ours |"]
    lines.append("|---|---|---|---|---|")
    for name, of in found.items():
        cells = [_cell(of[key]) for m in METRICS for key in (m, f"{m}_below_ours")]
        lines.append(" | ".join([f"| {name}", *cells]) + " |")
    for name in ("clean_precision", "noise_precision", "auc", "auc_in_mix"):
        lines += ["", f"{name} by round:", ""]
        for variant, of in rounds.items():
            row = [_cell(one) if one else "" for one in of.get(name, [])]
            lines.append(" | ".join([f"| {variant}", *row]) + " |")
    return "\n".join(lines)


def _cell(of: Mapping[str, Any]) -> str:
    error = of["standard_error"]
    return f"{of['mean']:.3f}" + ("" if error is None else f" ± {error:.3f}")


def main() -> None:
    """Print one JSON line, and tables before it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("self_filtering_output"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--noise", type=float, default=0.4)
    parser.add_argument("--smoke", action="store_true", help="next to no work: does it run?")
    parser.add_argument("--table", action="store_true", help="only of what is there")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    runs = []
    for seed in range(1 if args.smoke else args.seeds):
        plan = Plan(Experiment(args.noise, seed, samples_seen=TOTAL))
        if args.smoke:
            tiny = {"samples_seen": 512, "reference_samples_seen": 256, "m_flyt_steps": 2}
            plan = Plan(Experiment(args.noise, seed, pairs=400, **tiny), 1024, 1)
        place = folder_of(args.folder, plan.experiment)
        if not args.table:
            seconds = run_steps(plan.steps(), place, quiet=True)
            say(f"seed {seed}: {sum(seconds.values()):.0f} s")
        if (place / "results.json").exists():
            runs.append(read_run(place, plan.rounds))
    found, rounds = summary(runs), by_round(runs)
    say(tables(found, rounds))
    total = {"seeds": len(runs), "noise": args.noise, "total": TOTAL, "rounds": ROUNDS}
    print_result("self_filtering", {**total, "selections": found, "by_round": rounds})


if __name__ == "__main__":
    main()
