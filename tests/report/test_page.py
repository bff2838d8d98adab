"""The formats of numbers on the page, and the hashes of input files."""

from __future__ import annotations

import struct
from hashlib import sha256
from pathlib import Path

import pytest

from datacomp_flyt.pool.parquet import open_shards
from datacomp_flyt.report import provenance
from datacomp_flyt.report.page import count, number, percent, shade, signed
from tests.conftest import make_pool, write_files

NAN = float("nan")


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (count(1234567.4), "1,234,567"),
        (percent(0.0), "0%"),
        (percent(1.0), "100%"),
        (percent(0.99999), "99.9%"),
        (percent(0.386), "38.6%"),
        (percent(0.0123), "1.23%"),
        (percent(1e-9), "0.0000%"),
        (number(-0.5), "−0.5"),
        (number(9.0, 4, True), "9.000"),
        (number(1e-17), "0"),
        (number(NAN), "–"),
        (signed(0.456), "+0.46"),
        (signed(-0.001), "0.00"),
        (signed(-1, 1), "−1.0"),
        (signed(NAN), "–"),
    ],
)
def test_numbers(shown: str, expected: str) -> None:
    assert shown == expected


def luminance(color: str) -> float:
    """Relative luminance of #rrggbb or #rgb (WCAG 2)."""
    digits = color.removeprefix("#")
    digits = digits if len(digits) == 6 else "".join(2 * digit for digit in digits)
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("value", [step / 20 for step in range(-20, 21)] + [NAN])
def test_the_text_of_a_cell_has_contrast(value: float) -> None:
    colors = dict(rule.split(":") for rule in shade(value).split(";"))
    light, dark = sorted((luminance(colors["background"]), luminance(colors["color"])))[::-1]
    assert (light + 0.05) / (dark + 0.05) >= 4.5  # WCAG 2, level AA


def test_files_of_large_folders_are_hashed_by_their_footers(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "m", make_pool(50).metadata, 2)
    shards = open_shards(folder, "--metadata_dir", 1)
    paths = sorted(Path(folder).iterdir())
    whole = provenance.hash_folder(shards, 2)
    assert [file.digest for file in whole] == [sha256(p.read_bytes()).hexdigest() for p in paths]
    assert {file.hashed for file in whole} == {provenance.WHOLE}

    by_footer = provenance.hash_folder(shards, 2, max_whole=0)
    for file, path in zip(by_footer, paths, strict=True):
        content = path.read_bytes()
        (length,) = struct.unpack("<I", content[-8:-4])
        named = f"{path.name}\n{len(content)}\n".encode()
        assert file.digest == sha256(named + content[-8 - length :]).hexdigest()
        assert (file.size, file.hashed) == (len(content), provenance.FOOTER)
    lines = "".join(f"{file.digest}  {file.path}\n" for file in whole)
    assert provenance.digest_of_all(whole) == sha256(lines.encode()).hexdigest()
