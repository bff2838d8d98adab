"""Calls every reader with damaged files, and prints the outcomes that are wrong.

A right outcome is a correct answer or a refusal.

python -m tests.hostile.fuzz --mutants 10000 [--seed 0] [--readers pool tar]
"""

from __future__ import annotations

import random
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from datacomp_flyt.exits import Parser
from tests.hostile.mutate import damage
from tests.hostile.oracle import Outcome, Worker
from tests.hostile.parquets import rewritten_table
from tests.hostile.readers import READERS

OTHERS = ("scores", "embeddings", "tar", "settings", "mixing zip")
"""Readers whose valid files are given to other readers."""


class Finding(NamedTuple):
    """A mutant that a reader handled wrongly; the seed reproduces the mutant."""

    reader: str
    seed: int
    fault: str


class Mutant(NamedTuple):
    """Changed bytes of a valid file.

    Attributes:
        content: the bytes.
        same: True if the file has the same data as the valid file, so the answer must be equal.
        exact: True if the format has checksums, so that any answer must equal that of the valid
            file.
    """

    content: bytes
    same: bool
    exact: bool = False


class Bench:
    """A reader's valid folder, its outcome, and mutants of its file."""

    def __init__(self, name: str, folder: Path, worker: Worker) -> None:
        self.name, self.folder, self.worker = name, folder, worker
        self.reader = READERS[name]
        self.folder.mkdir(parents=True, exist_ok=True)
        self.reader.make(self.folder)
        self.target = self.folder / self.reader.target
        self.content = self.target.read_bytes()
        self.right = self._restore()
        assert self.right.kind == "answer", f"{name}: {self.right}"

    def _restore(self) -> Outcome:
        self.target.write_bytes(self.content)
        return self.worker.warm(self.name, self.folder) or self.right

    def mutant(self, seed: int, others: list[bytes]) -> Mutant:
        """Make a damaged file, or rewrite a table as another tool might."""
        rng = random.Random(f"{self.name} {seed}")
        if self.reader.table and rng.random() < 0.5:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return Mutant(*rewritten_table(rng, self.content))
        exact = self.reader.exact
        changed = damage(rng, self.content, [] if exact else others)
        return Mutant(changed, changed == self.content, exact)

    def fault(self, mutant: Mutant) -> str | None:
        """Call the reader with a mutant and return what is wrong with its outcome."""
        self._restore()
        self.target.write_bytes(mutant.content)
        outcome = self.worker.run(self.name, self.folder)
        if outcome.fault is None:
            if mutant.same and outcome.kind != "answer":
                return f"a valid file is refused: {outcome.text[:300]}"
            other_answer = outcome.kind == "answer" and outcome.digest != self.right.digest
            if (mutant.same or mutant.exact) and other_answer:
                return "another answer" if mutant.same else "damage is not noticed"
        return outcome.fault


def files_of_others(folder: Path) -> list[bytes]:
    """Make the valid files of `OTHERS`."""
    files = []
    for index, name in enumerate(OTHERS):
        reader = READERS[name]
        made = folder / str(index)
        made.mkdir(parents=True)
        reader.make(made)
        files.append((made / reader.target).read_bytes())
        shutil.rmtree(made)
    return files


def fuzz(
    name: str, seeds: range, folder: Path, worker: Worker, others: list[bytes]
) -> Iterator[Finding]:
    """Yield the findings among a reader's mutants."""
    bench = Bench(name, folder, worker)
    for seed in seeds:
        if fault := bench.fault(bench.mutant(seed, others)):
            yield Finding(name, seed, fault)


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--mutants", type=int, default=1000, help="mutants of each reader")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first mutant")
    parser.add_argument("--readers", nargs="*", choices=sorted(READERS), default=list(READERS))
    args = parser.parse_args()
    seeds, count = range(args.seed, args.seed + args.mutants), 0
    with tempfile.TemporaryDirectory() as temporary, Worker() as worker:
        others = files_of_others(Path(temporary, "others"))
        for name in args.readers:
            began = time.perf_counter()
            folder = Path(temporary, name.replace(" ", "_"))
            for finding in fuzz(name, seeds, folder, worker, others):
                count += 1
                print(f"{name} --seed {finding.seed}: {finding.fault}", flush=True)
            print(
                f"{name}: {len(seeds):,} mutants, {time.perf_counter() - began:.0f} s", flush=True
            )
    print(f"{count:,} findings")
    raise SystemExit(count > 0)


if __name__ == "__main__":
    main()
