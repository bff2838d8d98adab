"""Measures how well FLYT learns to separate true pairs from pairs with swapped captions.

The pool is several copies of the demo pool with 40% of the captions swapped (`corrupted_pool`).
`datacomp_flyt.flyt.train` trains M-FLYT on informative columns and three columns of noise, and
E-FLYT on the npz embeddings. The downstream set (`demo/downstream`) has other drawings of the same
objects, labelled with their names. The measure is the AUC of true against swapped pairs; training
does not use which captions were swapped. E-FLYT's reference model is first trained on the
unfiltered pool, as in the paper; M-FLYT's is random.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from benchmarks.corrupted_pool import NOISE, CorruptedPool, make_corrupted_pool
from benchmarks.measure import ROOT, print_result, say
from datacomp_flyt.demo import POOL
from datacomp_flyt.exits import Parser
from datacomp_flyt.mixing import load_mixing_model, mix
from datacomp_flyt.pool.pool import read_pool
from datacomp_flyt.pool.uids import format_uid
from datacomp_flyt.scorers import e_flyt_scores, load_glu_head

DOWNSTREAM = POOL.parent / "downstream"
COLUMNS = ("clip_l14", "negclip_loss", "caption_agreement", *NOISE)
E_FLYT_FLAGS = (
    *("--features", "embeddings", "--cosine_start", "--num_steps", "300"),
    *("--scoring_lr", "0.001", "--reference_lr", "0.001"),
)

Scores = NDArray[np.floating]


def auc(is_true: NDArray[np.bool_], scores: Scores) -> float:
    """Compute the probability that a true pair scores above a swapped one; ties count half."""
    true = int(is_true.sum())
    ranks = rankdata(scores)[is_true].sum()
    return float((ranks - true * (true + 1) / 2) / (true * (len(is_true) - true)))


def run_python(module: str, pool: CorruptedPool, seed: int, *flags: str) -> None:
    """Run a module on a pool's tars, on one core, since two trainings run at the same time."""
    command = [sys.executable, "-W", "ignore", "-m", module, "--train_data", str(pool.shards)]
    command += ["--seed", str(seed), *flags]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")


def train(pool: CorruptedPool, output_dir: Path, seed: int, *flags: str) -> Path:
    """Train with the tiny preset, and return the path of the scoring model."""
    always = ("--preset", "tiny", "--metadata_dir", str(pool.metadata))
    folders = ("--downstream_dir", str(DOWNSTREAM), "--output_dir", str(output_dir))
    run_python("datacomp_flyt.flyt.train", pool, seed, *always, *folders, *flags)
    return output_dir / "scoring_model.safetensors"


def run_seed(folder: Path, seed: int, copies: int) -> dict[str, Any]:
    """Run both trainings on one pool, and return the AUC of all scores."""
    start = time.perf_counter()
    pool = make_corrupted_pool(POOL, folder / "pool", seed, copies=copies)
    columns = {name: pool.columns[name] for name in COLUMNS}
    standardized = [(values - values.mean()) / values.std() for values in columns.values()]
    mixed_flags = ("--scores_dir", str(pool.scores), "--score_columns", *COLUMNS)
    model = load_mixing_model(str(train(pool, folder / "m_flyt", seed, *mixed_flags)))
    mixed, _ = mix(model, [columns[name] for name in model.columns])
    reference = str(folder / "reference.pt")
    run_python("benchmarks.unfiltered_reference", pool, seed, "--output", reference)
    flags = (*E_FLYT_FLAGS, "--reference_init", reference)
    head = load_glu_head(train(pool, folder / "e_flyt", seed, *flags))
    say(f"seed {seed}: {time.perf_counter() - start:.0f} s")
    weights = dict(zip(model.columns, model.weights, strict=True))
    largest = max(abs(weight) for weight in weights.values())
    return {
        "pairs": len(pool.uids),
        "swapped": float(1 - pool.is_true.mean()),
        "auc": {
            **{name: auc(pool.is_true, values) for name, values in columns.items()},
            "clip_b32": auc(
                pool.is_true, pool.columns["clip_b32"]
            ),  # the CLIP score of E-FLYT's embeddings
            "standardized_sum": auc(pool.is_true, np.sum(standardized, axis=0)),
            "informative_standardized_sum": auc(
                pool.is_true, np.sum(standardized[: -len(NOISE)], axis=0)
            ),
            "m_flyt": auc(pool.is_true, mixed),
            "e_flyt": auc(pool.is_true, _e_flyt_scores(pool, head)),
        },
        "weights": weights,
        "largest_noise_weight": max(abs(weights[name]) for name in NOISE) / largest,
    }


def _e_flyt_scores(pool: CorruptedPool, head: Any) -> Scores:
    """Compute E-FLYT scores in the order of the corrupted pool's uids."""
    read = read_pool(str(pool.metadata), 1, progress=False)
    scores = e_flyt_scores(head, read, progress=False)
    score_of = {format_uid(uid): score for uid, score in zip(read.uids, scores, strict=True)}
    return np.array([score_of[uid] for uid in pool.uids])


def main() -> None:
    """Measure, and print a line of JSON."""
    parser = Parser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--copies", type=int, default=32, help="copies of the demo pool")
    parser.add_argument("--parallel", type=int, default=2, help="seeds at a time")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.parallel) as executor:
        runs = list(
            executor.map(
                lambda seed: run_seed(Path(folder) / str(seed), seed, args.copies),
                range(args.seeds),
            )
        )
    names = runs[0]["auc"]
    print_result(
        "learning",
        {
            "seeds": runs,
            "mean_auc": {name: np.mean([run["auc"][name] for run in runs]) for name in names},
            "m_flyt_beats_every_column_and_sum": all(
                run["auc"]["m_flyt"]
                > max(run["auc"][name] for name in (*COLUMNS, "standardized_sum"))
                for run in runs
            ),
            "noise_below_a_tenth": all(run["largest_noise_weight"] < 0.1 for run in runs),
            "e_flyt_beats_clip_score": all(
                run["auc"]["e_flyt"] > run["auc"]["clip_b32"] for run in runs
            ),
        },
    )


if __name__ == "__main__":
    main()
