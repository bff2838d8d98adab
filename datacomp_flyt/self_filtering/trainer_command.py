"""The user's trainer command, and the flags that a round adds: data, output folder and length.

Two trainers are supported: open_clip's own (`-m open_clip_train.main`, or a script that passes its
flags on), and DataComp's `train.py`, whose flags differ and whose `--scale` sets the length.
"""

from __future__ import annotations

import glob
import os
import re
import shlex
from dataclasses import dataclass

from datacomp_flyt.datacomp.scales import SCALES, Scale
from datacomp_flyt.errors import InputError
from datacomp_flyt.files.listing import local_path
from datacomp_flyt.tars.shards import tars_in

# Flags that a round sets, by whether the trainer is DataComp's.
_SET_BY_ROUNDS = {
    True: ("--data_dir", "--output_dir", "--exp_name", "--resume"),
    False: ("--train-data", "--name", "--logs", "--resume", "--train-num-samples"),
}
_LONGEST = 100_000  # characters of an argument; Linux takes 131,072


@dataclass(frozen=True)
class TrainerCommand:
    """The words after `--` of the command line.

    Attributes:
        words: `-m open_clip_train.main ARGS`, or `train.py ARGS`.
        shards_dir: the pool's tars, as given.

    Raises:
        InputError: there are no words, or they have flags that a round sets itself.
    """

    words: tuple[str, ...]
    shards_dir: str

    def __post_init__(self) -> None:
        if not self.words:
            raise InputError(
                "the trainer's command is missing: end with -- -m open_clip_train.main ARGS, or "
                "-- train.py ARGS"
            )
        for flag in _SET_BY_ROUNDS[self.is_datacomp]:
            if self.value_of(flag) is not None:
                raise InputError(
                    f"{flag} is set anew in each round: leave it out of the trainer's command"
                    + (" (see --samples_per_round)" if flag == "--train-num-samples" else "")
                )

    @property
    def is_datacomp(self) -> bool:
        """True if the script is DataComp's `train.py`."""
        return os.path.basename(self.words[0]) == "train.py"

    def value_of(self, flag: str) -> str | None:
        """Return the last value of a flag, spelt with - or _, and with = or without; else None."""
        wanted, last = flag.replace("_", "-"), None
        for word, following in zip(self.words, [*self.words[1:], ""], strict=True):
            name, equals, value = word.partition("=")
            if name.startswith("--") and name.replace("_", "-") == wanted:
                last = value if equals else following
        return last

    @property
    def scale(self) -> Scale | None:
        """DataComp's scale, if the trainer is its `train.py` and the scale is one of the four."""
        return SCALES.get(self.value_of("--scale") or "") if self.is_datacomp else None

    @property
    def model(self) -> str | None:
        """open_clip's name of the trained model; None where the command does not give it."""
        return self.scale.model if self.scale else self.value_of("--model")

    def samples_per_round(self, given: int | None) -> int:
        """Return the number of samples that training sees in a round.

        Args:
            given: the value of `--samples_per_round`.

        Raises:
            InputError: neither `--samples_per_round` nor a scale sets it, or both do.
        """
        if self.scale:
            if given is not None:
                raise InputError(
                    f"--samples_per_round {given} with train.py --scale "
                    f"{self.value_of('--scale')}: there the scale says it, so leave one of them out"
                )
            return self.scale.num_samples
        if given is None:
            raise InputError("--samples_per_round is missing: how many samples a round trains on")
        return given

    def train(self, name: str, folder: str, samples: int, start: str | None) -> tuple[str, ...]:
        """Return the whole command of one training, which resumes when it is given again.

        Args:
            name: the name of the training in `folder`.
            samples: the number of samples to see; DataComp's train.py takes it from its scale.
            start: a checkpoint to take weights from; None for the weights that the command names.

        Raises:
            InputError: the pool has no tar, or `train.py` is to start from a checkpoint.
        """
        if self.is_datacomp:
            if self.shards_dir.endswith(".tar"):
                raise InputError(
                    f"--shards_dir {self.shards_dir}: DataComp's train.py takes the folder of the "
                    "tars: give that"
                )
            if start is not None:
                raise InputError(
                    "--continue wants a trainer that can start from a checkpoint, and DataComp's "
                    "train.py has no flag for that: leave it out, or use -m open_clip_train.main"
                )
            flags = ("--data_dir", self.shards_dir, "--output_dir", folder, "--exp_name", name)
            return (*self.words, *flags)
        epochs = self.value_of("--epochs")
        num_epochs = 1 if epochs is None else _num_epochs(epochs)
        return (
            *self.words,
            *("--train-data", train_data(self.shards_dir)),
            *("--train-num-samples", str(max(samples // num_epochs, 1))),
            *(() if epochs else ("--epochs", "1")),
            *(() if start is None else ("--pretrained", start)),
            *("--save-most-recent", "--logs", folder, "--name", name, "--resume", "latest"),
        )


def checkpoint_of(folder: str, name: str) -> str:
    """Return the file of a training's last weights, which is the same for both trainers."""
    return f"{folder}/{name}/checkpoints/epoch_latest.pt"


def train_data(shards_dir: str) -> str:
    """Return tars as open_clip's `--train-data` takes them: a folder becomes a pattern.

    Raises:
        InputError: a folder has no tar, or more than a pattern can name.
    """
    if (path := local_path(shards_dir)) is None:
        return shards_dir
    if ":" in path:  # webdataset would take the beginning of such a name for a scheme or a command
        path = os.path.abspath(path)
    if not os.path.isdir(path):
        if not os.path.lexists(path) and glob.has_magic(path):
            raise InputError(
                f"--shards_dir {shards_dir}: the trainer takes braces, not * and ?: give the "
                "folder, or a pattern such as {00000000..00012895}.tar"
            )
        return path
    names = [os.path.basename(tar) for tar in tars_in(path, "--shards_dir", needed=True)]
    folder = path.rstrip("/")
    pattern = f"{folder}/{_as_pattern(names)}"
    special = re.search(r"[{}]|::", folder) or re.search(r"[{},:]", "".join(names))
    if len(pattern) > _LONGEST or special:
        raise InputError(
            f"--shards_dir {shards_dir} has {len(names):,} tars whose names are no row of numbers, "
            "or a brace or :: in a name: give a pattern such as {00000000..00012895}.tar"
        )
    return pattern


def _as_pattern(names: list[str]) -> str:
    """Join file names into one pattern with braces."""
    if len(names) == 1:
        return names[0]
    stems, endings = zip(*map(os.path.splitext, names), strict=True)
    if len(set(endings)) > 1:
        return f"{{{','.join(names)}}}"
    width = len(stems[0])
    if all(re.fullmatch(r"\d+", stem) and len(stem) == width for stem in stems):
        numbers = [int(stem) for stem in stems]
        if numbers == list(range(numbers[0], numbers[-1] + 1)):
            return f"{{{stems[0]}..{stems[-1]}}}{endings[0]}"
    return f"{{{','.join(stems)}}}{endings[0]}"


def _num_epochs(value: str) -> int:
    if not value.isdigit() or int(value) < 1:
        raise InputError(f"--epochs {value} of the trainer's command is no number of epochs")
    return int(value)


def split_words(text: str, flag: str) -> tuple[str, ...]:
    """Split a quoted command line into words.

    Raises:
        InputError: a quote is not closed.
    """
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise InputError(f"{flag} {text} is no command line ({error})") from None
