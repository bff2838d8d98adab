"""The choices of a Self-Filtering-style run. All but the loop itself are ours, not the paper's.

What the paper's abstract says: CLIP is trained on an evolving set that it selects itself, "a
balance of filtered, highly probable clean samples as well as diverse samples from the entire
distribution"; training and selection take turns; no extra data, no pre-trained model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from datacomp_flyt.errors import InputError

SCORES = {
    "alignment": "cosine of a pair's image and text embeddings by the round's model",
    "info_nce": "negCLIPLoss: the pair's part of the symmetric loss in random batches",
    "cross_fitted": "alignment by two models, each trained on one half of the mix: of a pair, by "
    "the one that has not seen it",
    "memorisation": "the same, less what training on the pair has added beyond the usual",
}
"""By name, what each score is."""

TWO_MODELS = ("cross_fitted", "memorisation")
SELECTORS = ("self_filtering", "m_flyt", "e_flyt")
SCHEDULES = ("constant", "linear")
RANDOM_SHARE = 0.2


@dataclass(frozen=True)
class Settings:
    """What a run does.

    Attributes:
        samples_per_round: samples that training sees in a round, and draws of each mix, so that a
            mix is one epoch. No default: it is the user's budget.
        score: one of SCORES. alignment: it is there with the embeddings, has no temperature or
            batch to choose, and is what selection by an outside CLIP model uses.
        confident_fraction: of the pool by score. 0.3 is what DataComp found best for CLIP scores.
        random_share: of a mix's draws that come from the whole pool. 0.2: no pair is ever lost,
            each is drawn a fifth as often as in plain training, and four fifths of the draws are
            filtered. 0 by default in the closed loop, where Soft Cap Sampling itself spreads.
        random_schedule: `constant`, or `linear` from 1 before the first mix down to random_share in
            the last one: the early model is believed less. constant: one number less to choose.
        rounds: how often the pool is scored and mixed anew. 3: a machine-written note on the paper
            says that selection settles after some rounds.
        continued: start a round from the last round's weights, with a new optimizer and warm-up.
            From scratch by default: a model keeps what it has memorised of the noise, and its score
            of that with it; and the same note says "retrain".
        selector: `self_filtering`; or `m_flyt`, `e_flyt`: a scoring model that is learned in each
            round with the round's model as its reference, and Soft Cap Sampling.
        temperature: of info_nce; None for the model's own, which its loss had in training.
        info_nce_batch: pairs of a batch of info_nce. 4,096: DataComp's training batch up to medium.
        info_nce_partitions: K. 3, as in the tour: each costs as much as the first.
        repetition_penalty: of Soft Cap Sampling, 0.15 as the paper's at medium scale.
        seed: of halves, shares and shuffles.
    """

    samples_per_round: int
    score: str = "alignment"
    confident_fraction: float = 0.3
    random_share: float = RANDOM_SHARE
    random_schedule: str = "constant"
    rounds: int = 3
    continued: bool = False
    selector: str = "self_filtering"
    temperature: float | None = None
    info_nce_batch: int = 4096
    info_nce_partitions: int = 3
    repetition_penalty: float = 0.15
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises InputError where a value is out of range."""
        for name, choices in (
            ("score", tuple(SCORES)),
            ("selector", SELECTORS),
            ("random_schedule", SCHEDULES),
        ):
            if getattr(self, name) not in choices:
                raise InputError(
                    f"--{name} {getattr(self, name)} is none of {', '.join(choices)}: give one"
                )
        for name in ("samples_per_round", "rounds", "info_nce_batch", "info_nce_partitions"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} is {getattr(self, name)}, wanted 1 or more")
        if self.samples_per_round >= 2**31:
            raise InputError(
                f"--samples_per_round is {self.samples_per_round}, wanted less than {2**31:,}"
            )
        if not 0 < self.confident_fraction <= 1:
            raise InputError(
                f"--confident_fraction is {self.confident_fraction}, wanted more than 0 and at "
                "most 1"
            )
        if not 0 <= self.random_share <= 1:
            raise InputError(f"--random_share is {self.random_share}, wanted 0 to 1")
        if self.temperature is not None and not 0 < self.temperature < math.inf:
            raise InputError(f"--temperature is {self.temperature}, wanted a positive number")
        if not 0 <= self.repetition_penalty < math.inf:
            raise InputError(f"--repetition_penalty is {self.repetition_penalty}, wanted 0 or more")
        if self.selector != "self_filtering" and self.random_share == 1:
            raise InputError("--random_share 1 leaves nothing to select: give less")
        if self.selector != "self_filtering" and self.score != "alignment":
            raise InputError(
                f"--score {self.score} has no meaning for --selector {self.selector}, which learns "
                "its own: leave it out"
            )

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models that a round trains."""
        return ("a", "b") if self.score in TWO_MODELS else ("model",)

    def random_share_of(self, number: int) -> float:
        """Of the mix that round `number` trains on: 0 to `rounds`, of which 0 is the pool."""
        if number == 0:
            return 1.0
        if self.random_schedule == "constant":
            return self.random_share
        return 1.0 + (self.random_share - 1.0) * number / self.rounds
