"""Call every reader with damaged files, and print what is neither an answer nor a refusal.

python -m tests.hostile.fuzz --mutants 10000 [--seed 0] [--readers pool tar]
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from tests.hostile import parquets, structures, tars
from tests.hostile.mutate import damage, flip
from tests.hostile.oracle import Outcome, Worker
from tests.hostile.readers import READERS

STRUCTURES: dict[str, Callable[[random.Random, bytes], structures.Changed]] = {
    "bytes": lambda rng, content: (flip(rng, content), False),
    "json": structures.json_file,
    "text": structures.text_file,
    "npy": structures.npy,
    "zip": structures.zip_file,
    "image": structures.image_file,
    "safetensors": structures.safetensors_file,
    "parquet": parquets.parquet_file,
    "lines": structures.lines_file,
    "tar": tars.tar_file,
    "plain tar": tars.plain_tar_file,
}
OTHERS = ("scores", "embeddings", "tar", "settings", "mixing zip")
"""Readers whose valid files are taken for others'; seeds make the same mutants only with these."""


class Finding(NamedTuple):
    """A mutant that a reader did not bear; `seed` makes it again."""

    reader: str
    seed: int
    what: str


class Mutant(NamedTuple):
    """Of a valid file: whether it means the `same`; `exact`: if it is read at all, it has to."""

    content: bytes
    same: bool
    exact: bool = False


class Bench:
    """A reader's valid folder, its outcome, and mutants of it."""

    def __init__(self, name: str, folder: Path, worker: Worker) -> None:
        self.name, self.folder, self.worker = name, folder, worker
        self.reader = READERS[name]
        self.folder.mkdir(parents=True, exist_ok=True)
        self.reader.make(self.folder)
        self.target = self.folder / self.reader.target
        self.content = self.target.read_bytes()
        self.right = self._ready()
        assert self.right.kind == "well", f"{name}: {self.right}"

    def _ready(self) -> Outcome:
        self.target.write_bytes(self.content)
        return self.worker.warm(self.name, self.folder) or self.right

    def mutant(self, seed: int, others: list[bytes]) -> Mutant:
        rng = random.Random(f"{self.name} {seed}")
        if rng.random() < 0.5:
            exact = self.reader.exact
            changed = damage(rng, self.content, [] if exact else others)
            return Mutant(changed, changed == self.content, exact)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Mutant(*STRUCTURES[self.reader.kind](rng, self.content))

    def finding(self, content: bytes, same: bool = False, exact: bool = False) -> str | None:
        """What is wrong with the reader's answer to these bytes."""
        self._ready()
        self.target.write_bytes(content)
        outcome = self.worker.run(self.name, self.folder)
        if outcome.finding is None:
            if same and outcome.kind != "well":
                return f"refused what is right: {outcome.said[:300]}"
            if (same or exact) and outcome.kind == "well" and outcome.digest != self.right.digest:
                return "another answer to the same question" if same else "damage is not noticed"
        return outcome.finding


def others_of(folder: Path) -> list[bytes]:
    """The valid files of `OTHERS`."""
    found = []
    for number, name in enumerate(OTHERS):
        reader = READERS[name]
        place = folder / str(number)
        place.mkdir(parents=True)
        reader.make(place)
        found.append((place / reader.target).read_bytes())
        shutil.rmtree(place)
    return found


def fuzz(
    name: str, seeds: range, folder: Path, worker: Worker, others: list[bytes]
) -> Iterator[Finding]:
    """Findings among a reader's mutants."""
    bench = Bench(name, folder, worker)
    for seed in seeds:
        what = bench.finding(*bench.mutant(seed, others))
        if what:
            yield Finding(name, seed, what)


def main() -> None:
    """The command above."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--mutants", type=int, default=1000, help="of each reader")
    parser.add_argument("--seed", type=int, default=0, help="of the first")
    parser.add_argument("--readers", nargs="*", choices=sorted(READERS), default=list(READERS))
    parser.add_argument("--seconds", type=float, default=float("inf"), help="for each reader")
    args = parser.parse_args()
    number = 0
    with tempfile.TemporaryDirectory() as place, Worker() as worker:
        others = others_of(Path(place, "o"))
        for name in args.readers:
            began, seen = time.perf_counter(), 0
            bench = Bench(name, Path(place, name.replace(" ", "_")), worker)
            for seed in range(args.seed, args.seed + args.mutants):
                if time.perf_counter() - began > args.seconds:
                    break
                what, seen = bench.finding(*bench.mutant(seed, others)), seen + 1
                if what:
                    number += 1
                    print(f"{name} --seed {seed}: {what}", flush=True)
            print(f"{name}: {seen:,} mutants in {time.perf_counter() - began:.0f} s", flush=True)
    print(f"{number:,} findings")
    raise SystemExit(number > 0)


if __name__ == "__main__":
    main()
