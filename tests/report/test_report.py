"""`datacomp-flyt report`: the page as a whole."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from datacomp_flyt.cli import main
from datacomp_flyt.mixing import LinearMixingModel, save_mixing_model
from datacomp_flyt.report.report import write_report
from tests.conftest import REPOSITORY, take, write_files
from tests.report.made import (
    HOSTILE,
    MadeReport,
    make_captioned_pool,
    run,
    without_inputs,
    write_tars,
)

_VOID = {"meta", "link", "img", "br", "line", "rect", "path", "use"}


class Checked(HTMLParser):
    """Checks that tags are closed in order, and collects ids, links, images and headings."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.loaded: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.headings: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, dict(attrs))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID:
            assert self.open.pop() == tag

    def _note(self, tag: str, attributes: dict[str, str | None]) -> None:
        assert tag not in ("script", "iframe", "object", "embed")
        assert not any(name.startswith("on") for name in attributes)
        self.ids += [value for name, value in attributes.items() if name == "id" and value]
        links = (attributes.get(name) for name in ("src", "href", "xlink:href"))
        self.loaded += [link for link in links if link]
        if tag == "img":
            self.images.append(attributes)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(tag)


def checked(page: str) -> Checked:
    parser = Checked()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeReport:
    return MadeReport(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def page(made: MadeReport) -> str:
    """Make a page with a mixing model and pictures of all examples."""
    write_tars(made.folder / "tars", made.pool, 3, index=False)
    return made.run("--scoring_model", "paper", "--shards_dir", made.folder / "tars")


def test_the_page_is_whole_and_loads_nothing(page: str) -> None:
    found = checked(page)
    assert len(found.ids) == len(set(found.ids))
    assert all(link.startswith(("#", "data:")) for link in found.loaded)
    targets = [link[1:] for link in found.loaded if link.startswith("#")]
    assert set(targets) <= set(found.ids)
    assert found.headings[0] == "h1"
    assert found.headings.count("h1") == 1
    assert len(found.images) == 48
    assert all(image["alt"] for image in found.images)
    assert "@import" not in page
    assert set(re.findall(r"https?://[\w.]+", page)) <= {"http://www.w3.org"}


@pytest.mark.parametrize(
    "section",
    [
        *("selections", "scores", "repetitions", "mixing", "correlation"),
        *("penalties", "overlap", "examples", "words", "inputs"),
    ],
)
def test_every_section_is_there(page: str, section: str) -> None:
    assert f'<h2 id="{section}">' in page
    assert f'href="#{section}"' in page


def test_captions_stay_text(page: str) -> None:
    assert "alert(" in page
    assert HOSTILE not in page
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; &#34;quoted&#34;" in page
    # HTML has no escape for control characters; a mark of direction would turn all later text
    assert r"&#34;quoted&#34; \x00\x1b[2J\u202edog\x85<" in page
    assert all(char.isprintable() or char in "\n\xa0" for char in page)


def test_names_of_columns_and_selections_stay_text(tmp_path: Path) -> None:
    made = MadeReport(tmp_path)
    made.pool.scores["a<b>&$x^2$\x1b\u202e"] = made.pool.scores.pop("FLYT")
    made.scores = write_files(tmp_path / "renamed", made.pool.scores, 1)
    made.subsets["<i>odd</i>"] = made.subsets.pop("often")
    words = made.words("--score_columns", "a<b>&$x^2$\x1b\u202e", "DFN-FT")
    place = words.index("--subset") + 1
    words[place : place + 2] = [f"{name}={path}" for name, path in made.subsets.items()]
    run(words)
    page = (made.out / "index.html").read_text()
    checked(page)
    assert "<i>" not in page
    assert "a<b>" not in page
    assert r"a&lt;b&gt;&amp;$x^2$\x1b\u202e" in page
    assert not {"\x1b", "\u202e"} & set(page)


def test_python_writes_the_page_of_the_command(made: MadeReport, page: str) -> None:
    arguments = {
        "metadata_dir": made.metadata,
        "scores_dir": made.scores,
        "subsets": made.subsets,
        "shards_dir": str(made.folder / "tars"),
        "scoring_model": "paper",
        "num_workers": 2,
    }
    path = write_report(made.folder / "python", **arguments)
    assert path == made.folder / "python" / "index.html"
    from_python = path.read_text()
    assert without_inputs(from_python) == without_inputs(page)
    (call,) = re.findall(r"<pre><code>(.*?)</code></pre>", from_python)
    arguments["subsets"] = {name: str(path) for name, path in made.subsets.items()}
    written = ", ".join(f"{name}={value!r}" for name, value in sorted(arguments.items()))
    start = f"datacomp_flyt.write_report({str(made.folder / 'python')!r}, "
    assert unescape(call).startswith(start)
    given = unescape(call).removeprefix(start).removesuffix(")")
    assert sorted(given.split(", ")) == sorted(written.split(", "))


def test_the_same_inputs_make_the_same_bytes(made: MadeReport, page: str) -> None:
    again = made.run("--scoring_model", "paper", "--shards_dir", made.folder / "tars")
    assert again == page


@pytest.mark.parametrize("max_rows", [100, 1000])
def test_files_and_rows_in_another_order_make_the_same_page(tmp_path: Path, max_rows: int) -> None:
    pages = []
    for seed in (None, 8):
        made = MadeReport(tmp_path / str(seed), seed)
        columns = ("--score_columns", "FLYT", "DFN-FT")
        pages.append(made.run("--max_rows", max_rows, "--scoring_model", "paper", *columns))
    assert without_inputs(pages[0]) == without_inputs(pages[1])
    assert pages[0] != pages[1]


def test_the_seed_chooses_the_sample(made: MadeReport) -> None:
    first, second = (
        made.run("--max_rows", 100, "--score_columns", "FLYT", "--seed", seed) for seed in (0, 1)
    )
    assert without_inputs(first) != without_inputs(second)
    assert "are of a sample of" in first


def test_facts_that_the_page_states(made: MadeReport, page: str) -> None:
    counts = np.unique(np.load(made.subsets["often"]), return_counts=True)[1]
    assert "What was selected from 240 image-text pairs" in page
    images = "<td>not known</td>"
    numbers = f"<td>{len(counts)}</td><td>{len(counts) / 240:.1%}</td>"
    assert f"<td>{counts.sum()}</td>{images}{numbers}" in page
    assert f"<td>{round(counts.sum() ** 2 / (counts**2).sum())}</td>" in page
    assert "--scoring_model paper" in page
    assert "Seed 0." in page
    assert f"python {sys.version.split()[0]}" in page
    assert "Chosen among the 240 examples of the pool found in all 3 tars" in page


def test_hashes_are_of_the_files(made: MadeReport, page: str) -> None:
    from hashlib import sha256

    files = [*made.subsets.values(), *Path(made.metadata).iterdir(), *Path(made.scores).iterdir()]
    for path in files:
        assert sha256(path.read_bytes()).hexdigest() in page


def test_a_bare_pool_reports_on_its_clip_scores(made: MadeReport, tmp_path: Path) -> None:
    words = made.words("--out", tmp_path)
    place = words.index("--scores_dir")
    del words[place : place + 2]
    run(words)
    page = (tmp_path / "index.html").read_text()
    assert "vit-l-14" in page
    assert 'id="mixing"' not in page
    assert 'id="examples"' not in page


def test_a_model_of_missing_columns_says_so(made: MadeReport, tmp_path: Path) -> None:
    model = LinearMixingModel(("FLYT", "unheard"), (0.5, 0.5), 0.0, True, (0.0, 0.0), (1.0, 1.0))
    save_mixing_model(model, tmp_path / "m.safetensors")
    page = made.run("--scoring_model", tmp_path / "m.safetensors", "--score_columns", "FLYT")
    assert "Without unheard:" in page
    assert "<td>+0.500</td><td>0.000</td><td>1.000</td>" in page


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--max_rows", 0), "--max_rows is 0, wanted 1 or more"),
        (("--examples", 0), "--examples is 0, wanted 1 or more"),
        (("--repetition_penalties", -1), "--repetition_penalties -1: wanted at most 7 numbers"),
        (("--score_columns", "nothing"), "no column 'nothing'"),
        (("--score", "nothing"), "no column 'nothing'"),
        (("--scoring_model", "none.pt"), "--scoring_model none.pt is not a file"),
        (("--shards_dir", "nowhere"), "--shards_dir nowhere names no file"),
        (("--metadata_dir", "nowhere"), "--metadata_dir nowhere is not a folder"),
        (("--subset", "none.npy"), "none.npy cannot be read as .npy"),
        (("--out", "s3://bucket"), "--out s3://bucket"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_leaves_no_page(
    made: MadeReport,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    files_in: Callable[[], dict[str, bytes]],
    more: tuple[object, ...],
    said: str,
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "index.html").write_text("an older page")
    before = files_in()
    with pytest.raises(SystemExit) as ended:
        main(made.words("--out", tmp_path / "out", *more))
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert said in lines[0]
    assert files_in() == before


def test_a_score_that_is_nowhere_finite_is_named(
    made: MadeReport, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = make_captioned_pool(240)
    columns = take(pool.scores, range(240)) | {"empty": np.full(240, np.nan)}
    folder = write_files(tmp_path / "scores", columns, 1)
    with pytest.raises(SystemExit) as ended:
        main(made.words("--scores_dir", folder, "--out", tmp_path / "out"))
    assert ended.value.code == 2
    assert "column 'empty' has no finite value" in capsys.readouterr().err


def test_a_missing_package_is_named_with_its_command(
    made: MadeReport, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("datacomp_flyt.report")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(SystemExit) as ended:
        main(made.words())
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert re.search(r"jinja2 is not installed: pip install .*\[report\]'", said)


def test_the_templates_are_shipped() -> None:
    text = (REPOSITORY / "pyproject.toml").read_text()
    assert '"datacomp_flyt.report" = ["*.j2"]' in text
    assert '"datacomp_flyt.report",' in text
