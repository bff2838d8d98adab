"""The choices of a Self-Filtering-style run. All but the loop itself are made here.

The paper's abstract says that CLIP is trained on an evolving set that it selects itself, "a
balance of filtered, highly probable clean samples as well as diverse samples from the entire
distribution"; that training and selection take turns; and that no extra data and no pre-trained
model are used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from datacomp_flyt.errors import InputError

SCORES = {
    "alignment": "cosine of a pair's image and text embeddings by the round's model",
    "info_nce": "negCLIPLoss: the pair's part of the symmetric loss in random batches",
    "cross_fitted": "alignment by two models, each trained on one half of the subset: a pair's "
    "score is by the model that has not seen it",
    "memorisation": "cross_fitted less the pair's gain by training on it, beyond the mean gain",
}
"""The scores by name, with their descriptions."""

TWO_MODELS = ("cross_fitted", "memorisation")
SELECTORS = ("self_filtering", "m_flyt", "e_flyt")
SCHEDULES = ("constant", "linear")
CONFIDENT_FRACTION, RANDOM_SHARE = 0.3, 0.2


@dataclass(frozen=True)
class Settings:
    """The settings of a run's rounds.

    Attributes:
        samples_per_round: the number of samples that training sees in a round, and of draws of
            each subset, so that a subset is one epoch. No default: it is the user's budget.
        score: one of SCORES. `alignment` comes with the embeddings, has no temperature or batch
            size to choose, and is what selection by an outside CLIP model uses.
        confident_fraction: the fraction of the pool that is selected by score. DataComp found 0.3
            best for CLIP scores.
        random_share: the share of a subset's draws that come from the whole pool. With 0.2 no pair
            is ever lost, each is drawn a fifth as often as in plain training, and four fifths of
            the draws are filtered. The closed loop uses 0, since Soft Cap Sampling itself spreads.
        random_schedule: `constant`, or `linear` from 1 before the first selection down to
            random_share in the last subset, which trusts the early model less. `constant` leaves
            one number less to choose.
        rounds: the number of times that the pool is scored and selected from. A machine-written
            note on the paper says that the selection settles after some rounds.
        continued: start a round from the last round's weights, with a new optimizer and warm-up.
            By default rounds start from scratch: a model keeps what it has memorised of the noise,
            and with it the noise's score; and the same note says "retrain".
        selector: `self_filtering`; or `m_flyt` or `e_flyt`, a scoring model that is learned in
            each round with the round's model as its reference, and Soft Cap Sampling.
        temperature: the temperature of info_nce; None for the one that the model has learned.
        info_nce_batch: the batch size of info_nce. 4,096 is DataComp's up to medium scale.
        info_nce_partitions: K of info_nce. 3, as in the tour: each costs as much as the first.
        repetition_penalty: alpha of Soft Cap Sampling; 0.15 is the paper's at medium scale.
        seed: the seed of halves, shares and shuffles.

    Raises:
        InputError: a value is out of its range, or two do not go together.
    """

    samples_per_round: int
    score: str = "alignment"
    confident_fraction: float = CONFIDENT_FRACTION
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
        self._check_choices()
        self._check_ranges()
        if self.is_closed_loop and self.random_share == 1:
            raise InputError("--random_share 1 leaves nothing to select: give less")
        if self.is_closed_loop and self.score != "alignment":
            raise InputError(
                f"--score {self.score} has no meaning for --selector {self.selector}, which learns "
                "its own: leave it out"
            )

    def _check_choices(self) -> None:
        for name, choices in (
            ("score", tuple(SCORES)),
            ("selector", SELECTORS),
            ("random_schedule", SCHEDULES),
        ):
            if getattr(self, name) not in choices:
                raise InputError(
                    f"--{name} is {getattr(self, name)!r}, wanted one of {', '.join(choices)}"
                )

    def _check_ranges(self) -> None:
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

    @property
    def is_closed_loop(self) -> bool:
        """True if a scoring model is learned in each round."""
        return self.selector != "self_filtering"

    @property
    def models(self) -> tuple[str, ...]:
        """The names of the models that a round trains."""
        return ("a", "b") if self.score in TWO_MODELS else ("model",)

    def random_share_of(self, round_index: int) -> float:
        """Return the random share of the subset that a round trains on; 1 in round 0."""
        if round_index == 0:
            return 1.0
        if self.random_schedule == "constant":
            return self.random_share
        return 1.0 + (self.random_share - 1.0) * round_index / self.rounds
