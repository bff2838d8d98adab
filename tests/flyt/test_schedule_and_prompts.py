"""Learning rates against open_clip's, and the prompts of each step."""

from __future__ import annotations

from collections import Counter

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")

from torch import Tensor

from datacomp_flyt.flyt.downstream_tasks import DownstreamTask
from datacomp_flyt.flyt.prompts import Prompts
from datacomp_flyt.flyt.schedule import learning_rate

TASKS = [
    DownstreamTask("pets", (), ("cat", "dog", "mouse"), ("a {c}", "the {c}", "one {c}", "{c}s")),
    DownstreamTask("digits", (), ("0", "1"), ("the digit {c}", "number {c}.")),
]
NUMBER = 5


# ------------------------------------------------------------------------------- schedule


@pytest.mark.parametrize(("warmup", "steps"), [(5, 40), (0, 10), (1, 2), (100, 5000)])
def test_cosine_equals_open_clips(warmup: int, steps: int) -> None:
    from open_clip_train.scheduler import cosine_lr

    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    theirs = cosine_lr(optimizer, 5e-4, warmup, steps)
    ours = [learning_rate(step, 5e-4, warmup, steps) for step in range(steps)]
    assert ours == pytest.approx([theirs(step) for step in range(steps)], rel=1e-12)
    assert max(ours) == pytest.approx(5e-4)
    assert min(ours) > 0


def test_constant_stays_after_the_warm_up() -> None:
    rates = [learning_rate(step, 0.1, 4, 100, "constant") for step in range(100)]
    assert rates[:4] == pytest.approx([0.025, 0.05, 0.075, 0.1])
    assert set(rates[4:]) == {0.1}


def test_a_warm_up_as_long_as_training_ends_at_the_peak() -> None:
    rates = [learning_rate(step, 0.1, 3, 3) for step in range(4)]
    assert rates == pytest.approx([0.1 / 3, 0.2 / 3, 0.1, 0.1])


# -------------------------------------------------------------------------------- prompts


class Tokenizer:
    """A tokenizer of 16 character codes that records its inputs."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, texts: list[str]) -> Tensor:
        self.asked += texts
        return torch.tensor([[ord(letter) for letter in text.ljust(16)] for text in texts])


def read(tokens: Tensor) -> list[str]:
    return ["".join(map(chr, row)).rstrip() for row in tokens.tolist()]


def prompts(seed: int = 0, tokenize: Tokenizer | None = None) -> Prompts:
    return Prompts(TASKS, tokenize or Tokenizer(), seed)


def test_classes_of_all_tasks_in_order() -> None:
    made = prompts()
    assert made.num_classes == NUMBER
    assert made.class_tasks.tolist() == [0, 0, 0, 1, 1]
    texts = read(made.of_step(0, range(NUMBER)))
    possible = [
        {template.replace("{c}", name) for template in task.templates}
        for task in TASKS
        for name in task.class_names
    ]
    assert all(text in some for text, some in zip(texts, possible, strict=True))


def test_every_rank_has_the_same_prompt_per_class() -> None:
    """Ranks get the same prompts, whatever share of the classes they have."""
    whole = read(prompts().of_step(7, range(NUMBER)))
    shares = [range(0, 1), range(1, 1), range(1, 3), range(3, 5)]
    one = prompts()
    assert [text for share in shares for text in read(one.of_step(7, share))] == whole
    labels = [4, 0, 0, 2, 4]
    assert read(prompts().of_step(7, labels)) == [whole[label] for label in labels]
    assert tuple(one.of_step(7, range(1, 1)).shape) == (0, 16)


def test_prompts_depend_on_step_and_seed_and_are_reproducible() -> None:
    tokenize = Tokenizer()
    made = prompts(0, tokenize)
    steps = [tuple(read(made.of_step(step, range(NUMBER)))) for step in range(40)]
    assert len(set(steps)) > 20
    assert [tuple(read(made.of_step(step, range(NUMBER)))) for step in range(40)] == steps
    other = prompts(1)
    assert [tuple(read(other.of_step(step, range(NUMBER)))) for step in range(40)] != steps
    assert len(tokenize.asked) == len(set(tokenize.asked)) == 16  # each text was tokenized once


def test_templates_are_uniform_and_independent_between_classes() -> None:
    """Template counts of 4,000 steps are within five standard deviations."""
    made, steps = prompts(), 4000
    drawn = [read(made.of_step(step, range(NUMBER))) for step in range(steps)]
    for index, templates in enumerate([4, 4, 4, 2, 2]):
        counts = Counter(texts[index] for texts in drawn)
        assert len(counts) == templates
        p = 1 / templates
        deviation = (steps * p * (1 - p)) ** 0.5
        assert all(abs(count - steps * p) < 5 * deviation for count in counts.values())
    cats, dogs = ([texts[index][:2] for texts in drawn] for index in (0, 1))
    together = Counter(zip(cats, dogs, strict=True))
    deviation = (steps / 16 * 15 / 16) ** 0.5
    assert len(together) == 16
    assert all(abs(count - steps / 16) < 5 * deviation for count in together.values())
