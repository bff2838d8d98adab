"""NormSim_2-D: NormSim_2 to a target that is a shrinking subset of the pool itself (also VAS-D).

Wang et al., NeurIPS 2024, and "Variance Alignment Score", 2024. From the survivors S of a first
stage, in tau rounds: compute v_i = f_i^T Sigma f_i, drop the ceil((|S| - n) / tau) lowest, and
compute Sigma, the second moment, of the remaining ones; in the first round it is the whole pool's.

A round changes Sigma by little, so v falls by little: by f_i^T D f_i, where D is the moment of the
examples dropped since v was measured, at most D's largest eigenvalue. So only the examples with the
lowest v can be dropped in the next rounds. These candidates are fetched, and rounds run on them
alone, in float64, as long as that bound proves that no other example is lower. The result equals
that of measuring all examples in every round, with a few passes over the pool instead of tau.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt.arguments import check_integer
from datacomp_flyt.errors import InputError
from datacomp_flyt.files.digest import file_digest
from datacomp_flyt.pool.parquet import ParquetShard
from datacomp_flyt.pool.subset import read_subset
from datacomp_flyt.pool.uid_search import find_uids
from datacomp_flyt.scorers.base.embedding_blocks import Floats, iter_embedding_blocks
from datacomp_flyt.scorers.base.flags import add_arch, add_renormalize
from datacomp_flyt.scorers.base.matrix_products import Compute
from datacomp_flyt.scorers.base.scorer import Arrays, PoolScorer, PoolState, read_uids
from datacomp_flyt.scorers.base.second_moment import second_moment, square_root
from datacomp_flyt.scorers.vas import add_up, moment_of_rows

_ROUNDING = 1e-5  # relative error of v in float32, with a margin
_BLOCK = 1 << 14
Doubles = NDArray[np.float64]


class NormSimD(PoolScorer):
    """The round of NormSim_2-D in which an example is dropped.

    0 outside the first stage's subset, r if dropped in round r, tau + 1 if kept. So the top
    n = int(fraction * M) are the final subset.
    """

    uses_gpu = True

    def __init__(
        self,
        *,
        fraction: float = 0.2,
        num_rounds: int = 500,
        first_stage: str | None = None,
        candidates: int = 1 << 20,
        arch: str = "b32",
        renormalize: bool = False,
        column: str | None = None,
    ) -> None:
        """
        Args:
            fraction: the share of the whole pool that is kept in the end.
            num_rounds: tau; 500 at medium scale, 168 at small, 1 for VAS of the pool.
            first_stage: .npy of the uids that the first stage kept; None for all.
            candidates: examples to fetch at once, 4 d bytes each; the result does not depend on it.
            arch: the prefix of the pool's array: `b32`, `l14`.
            renormalize: scale embeddings to unit norm.
            column: the name of the score; None for `normsim_d`.

        Raises:
            InputError: an argument is out of range, or the subset cannot be read.
        """
        if not 0 < fraction <= 1:
            raise InputError(f"--fraction is {fraction}, wanted more than 0 and at most 1")
        num_rounds = check_integer(num_rounds, "--num_rounds", least=1)
        candidates = check_integer(candidates, "--candidates", least=1)
        if first_stage:
            read_subset(first_stage)
        self.arrays = (f"{arch}_img",)
        self.fraction, self.num_rounds, self.first_stage = fraction, num_rounds, first_stage
        self.candidates, self.array, self.renormalize = candidates, f"{arch}_img", renormalize
        self.columns = (column or "normsim_d",)
        self.settings = {
            "array": self.array,
            "fraction": fraction,
            "num_rounds": num_rounds,
            "first_stage": file_digest(first_stage) if first_stage else None,
            "renormalize": renormalize,
        }

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        add_arch(parser)
        add_renormalize(parser)
        parser.add_argument(
            "--fraction", type=float, default=0.2, help="of the whole pool to keep (default: 0.2)"
        )
        parser.add_argument(
            "--num_rounds", type=int, default=500, help="tau: 500 (default, medium), 168 for small"
        )
        parser.add_argument(
            "--first_stage",
            metavar="FILE",
            help=".npy of the uids that a first stage kept, such as the best 30%% by negCLIPLoss",
        )
        parser.add_argument(
            "--candidates",
            type=int,
            default=1 << 20,
            help="examples to hold in memory at once (default: 1,048,576); changes the time only",
        )

    def load(self, device: str) -> None:
        self.compute = Compute(device, "fp32")
        self.subset = None if self.first_stage is None else read_subset(self.first_stage)[0]

    def summarize(self, shard: ParquetShard, state: Arrays) -> Arrays:
        if not state:
            return self._begin(shard)
        return self._measure(shard, state)

    def _begin(self, shard: ParquetShard) -> Arrays:
        """Return second moments of all rows and the first stage's, and the latter's mask."""
        alive = np.ones(shard.num_rows, np.bool_)
        if self.subset is not None:
            high, low = self.subset["f0"], self.subset["f1"]
            alive = find_uids(high, low, read_uids(shard)) >= 0
        whole = moment_of_rows(shard, self.array, self.renormalize)
        first = np.zeros_like(whole["moment"])
        row = 0
        for (block,) in iter_embedding_blocks(shard, [self.array], self.renormalize, Counter()):
            part = slice(row, row + len(block))
            alive[part] &= np.isfinite(block[:, 0])
            first += second_moment(block[alive[part]])
            row += len(block)
        return {"all": whole["moment"], "number": whole["number"], "first": first, "alive": alive}

    def _measure(self, shard: ParquetShard, state: Arrays) -> Arrays:
        """Measure v of the remaining rows; with a threshold, return the rows up to it instead.

        v is measured in the same way each time, so the threshold selects the same rows again.
        """
        left = np.flatnonzero(state["rounds"] > self.num_rounds)
        values, longest, row = np.empty(len(left), np.float32), 0.0, 0
        root = self.compute.put(state["root"])
        below: list[Floats] = []
        for (block,) in iter_embedding_blocks(shard, [self.array], self.renormalize, Counter()):
            begin, end = np.searchsorted(left, (row, row + len(block)))
            rows = block[left[begin:end] - row]
            forms = (self.compute.put(rows) @ root).square().sum(1).cpu().numpy()
            values[begin:end] = forms
            if "threshold" in state:
                below.append(rows[forms <= state["threshold"]])
            elif len(rows):
                longest = max(longest, float(np.einsum("ij,ij->i", rows, rows).max()))
            row += len(block)
        if "threshold" not in state:
            return {"values": values, "longest": np.array(longest)}
        chosen = left[values <= state["threshold"]]
        return {
            "rows": chosen,
            "uids": read_uids(shard)[chosen].view(np.uint64).reshape(-1, 2),
            "embeddings": np.concatenate(below) if below else np.empty((0, len(root)), np.float32),
        }

    def reduce(
        self, state: PoolState | None, names: list[str], summary: Callable[[str], Arrays]
    ) -> PoolState:
        if state is None:
            return self._first_state(names, summary)
        if "threshold" not in state.common:
            return self._choose_candidates(state, names, summary)
        return self._run_rounds(state, names, summary)

    def _first_state(self, names: list[str], summary: Callable[[str], Arrays]) -> PoolState:
        moments = add_up(names, lambda name: _without(summary(name), "alive"))
        rounds = {name: summary(name)["alive"] * np.int32(self.num_rounds + 1) for name in names}
        alive = sum(int(np.count_nonzero(part)) for part in rounds.values())
        kept = int(self.fraction * int(moments["number"]))
        common = {
            "used": moments["all"],  # Sigma of the next round
            "left": moments["first"],  # the moment of the remaining examples
            "root": square_root(moments["all"]),
            "number": np.array(alive),
            "keep": np.array(kept),
            "chunk": np.array(math.ceil(max(alive - kept, 0) / self.num_rounds)),
            "round": np.array(0),
            "fetch": np.array(self.candidates),
        }
        return PoolState(common, {n: {"rounds": r} for n, r in rounds.items()}, alive <= kept)

    def _choose_candidates(
        self, state: PoolState, names: list[str], summary: Callable[[str], Arrays]
    ) -> PoolState:
        summaries = map(summary, names)
        parts = [(part["values"], float(part["longest"])) for part in summaries]
        values = np.concatenate([part for part, _ in parts])
        fetch, chunk = int(state.common["fetch"]), int(state.common["chunk"])
        if fetch < 2 * chunk:
            raise InputError(
                f"--num_rounds {self.num_rounds} drops {chunk:,} examples a round, and "
                f"--candidates {self.candidates:,} is less than twice that: raise either"
            )
        threshold = np.float32(np.inf)
        if fetch < len(values):
            threshold = np.partition(values, fetch)[fetch]
        common = {
            **state.common,
            "threshold": np.array(threshold),
            "longest": np.array(max(longest for _, longest in parts)),
        }
        return PoolState(common, state.by_shard, final=False)

    def _run_rounds(
        self, state: PoolState, names: list[str], summary: Callable[[str], Arrays]
    ) -> PoolState:
        candidates = _Candidates.of(names, summary)
        common = dict(state.common)
        threshold, longest = float(common.pop("threshold")), float(common.pop("longest"))
        num_left, keep, chunk = (int(common[key]) for key in ("number", "keep", "chunk"))
        used, left, done = common["used"], common["left"], int(common["round"])
        measured, rounds_before = used, done
        while num_left > keep:
            drop = candidates.lowest(used, min(chunk, num_left - keep))
            fall = np.linalg.eigvalsh(measured - used)[-1] * longest
            lowest_other = threshold * (1 - _ROUNDING) - max(fall, 0) * (1 + _ROUNDING)
            if not candidates.last_form < lowest_other:
                break
            done += 1
            left = left - second_moment(candidates.drop(drop, done))
            used, num_left = left, num_left - len(drop)
        if done == rounds_before:
            common["fetch"] = np.array(2 * int(common["fetch"]))
        rounds = {name: state.by_shard[name]["rounds"].copy() for name in names}
        for shard, name in enumerate(names):
            mine = (candidates.shards == shard) & (candidates.dropped_in > 0)
            rounds[name][candidates.rows[mine]] = candidates.dropped_in[mine]
        common |= {
            "used": used,
            "left": left,
            "root": square_root(used),
            "number": np.array(num_left),
            "round": np.array(done),
        }
        return PoolState(common, {n: {"rounds": r} for n, r in rounds.items()}, num_left <= keep)

    def score_rows(
        self, shard: ParquetShard, state: Arrays, counts: Counter[str]
    ) -> NDArray[np.floating]:
        scores = state["rounds"].astype(np.float64)
        row = 0
        for (block,) in iter_embedding_blocks(shard, [self.array], self.renormalize, counts):
            scores[row : row + len(block)][~np.isfinite(block[:, 0])] = np.nan
            row += len(block)
        return np.asarray(scores)


@dataclass
class _Candidates:
    """Examples that may be dropped next.

    Attributes:
        shards, rows: the index of each one's shard, and its row there [C].
        uids: the two halves of the uids [C, 2].
        embeddings: float32 [C, d].
        dropped_in: the round in which each was dropped [C]; 0 for those that remain.
        last_form: the largest v among those that `lowest` returned last.
    """

    shards: NDArray[np.int64]
    rows: NDArray[np.int64]
    uids: NDArray[np.uint64]
    embeddings: Floats
    dropped_in: NDArray[np.int32]
    last_form: float = -math.inf

    @classmethod
    def of(cls, names: list[str], summary: Callable[[str], Arrays]) -> _Candidates:
        parts = [summary(name) for name in names]
        shards = [np.full(len(part["rows"]), index) for index, part in enumerate(parts)]
        rows, uids, embeddings = (
            np.concatenate([part[key] for part in parts]) for key in ("rows", "uids", "embeddings")
        )
        dropped = np.zeros(len(rows), np.int32)
        return cls(np.concatenate(shards), rows, uids, embeddings, dropped)

    def lowest(self, moment: Doubles, count: int) -> NDArray[np.intp]:
        """Return the `count` remaining examples of lowest v; of equal v, larger uids first."""
        left = np.flatnonzero(self.dropped_in == 0)
        count = min(count, len(left))
        forms = np.empty(len(left))
        for start in range(0, len(left), _BLOCK):
            block = self.embeddings[left[start : start + _BLOCK]].astype(np.float64)
            forms[start : start + _BLOCK] = np.einsum("ij,ij->i", block @ moment, block)
        self.last_form = float(np.partition(forms, count - 1)[count - 1]) if count else math.inf
        near = np.flatnonzero(forms <= self.last_form)
        uids = self.uids[left[near]]
        order = np.lexsort((~uids[:, 1], ~uids[:, 0], forms[near]))
        return np.asarray(left[near[order[:count]]])

    def drop(self, indices: NDArray[np.intp], round_index: int) -> Floats:
        """Mark examples as dropped, and return their embeddings."""
        self.dropped_in[indices] = round_index
        return self.embeddings[indices]


def _without(arrays: Arrays, key: str) -> Arrays:
    return {name: array for name, array in arrays.items() if name != key}
