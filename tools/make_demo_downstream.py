"""Make the demo's downstream set: labelled drawings of the pool's concepts by a third artist.

The result is committed in `datacomp_flyt/demo/downstream`. To make it again, in an empty folder:

    python3 -m venv env
    env/bin/pip install pillow pyarrow resvg-py==0.5.0
    npm install @iconify-json/fluent-emoji-flat@1.2.6
    env/bin/python REPO/tools/make_demo_downstream.py \\
        --fluent_dir node_modules/@iconify-json/fluent-emoji-flat \\
        --pool_dir REPO/datacomp_flyt/demo/pool --out REPO/datacomp_flyt/demo/downstream

It replaces the tars, class names and templates; `README.md` and `LICENSES/` are written by hand.

A class is one of the pool's concepts, in the order of their code points, and its name is the
emoji's Unicode name, which is also the caption of Google's drawing in the pool. The same versions
write the same bytes every time.
"""

from __future__ import annotations

from datacomp_flyt.exits import Parser, run_main

if __name__ == "__main__":  # all else is imported where Ctrl-C has a handler
    run_main("tools.make_demo_downstream")

import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import resvg_py
from PIL import Image

from datacomp_flyt.streams import say

SHARDS = 3  # the paper's downstream tars hold 100 examples (C.9)
SIDE = 64  # pixels, as in the pool
WEBP_QUALITY = 85
# The pool's captions are bare names, so its models know no other words.
TEMPLATES = ("{c}",)
NAMED_BY = "npm:emoji-datasource-google/"  # of two drawings, the one captioned with name 0


@dataclass(frozen=True)
class Drawing:
    """One labelled picture: its label, the URL of its source, and the source, an SVG text."""

    label: int
    url: str
    svg: str


def pool_concepts(pool_dir: Path) -> dict[str, str]:
    """Return the emoji's names by code points, such as `1f468-200d-2708-fe0f`, sorted."""
    named = {}
    for path in sorted((pool_dir / "metadata").glob("*.parquet")):
        rows = pq.read_table(path, columns=["url", "text"]).to_pylist()
        for row in rows:
            if row["url"].startswith(NAMED_BY):
                named[Path(row["url"]).stem] = row["text"]
    return dict(sorted(named.items()))


def icon_name(codes: str, icon_of: dict[str, str]) -> str:
    """Return the icon of an emoji; in Unicode the presentation sign fe0f is optional."""
    plain = codes.replace("-fe0f", "")
    names = [
        icon_of[spelling] for spelling in (codes, plain, f"{plain}-fe0f") if spelling in icon_of
    ]
    if not names:
        raise SystemExit(f"the package has no drawing of {codes}: it is not version 1.2.6")
    return names[0]


def read_drawings(fluent_dir: Path, concepts: dict[str, str]) -> list[Drawing]:
    """Return one drawing of each concept."""
    icons: dict[str, Any] = json.loads((fluent_dir / "icons.json").read_text(encoding="utf-8"))
    icon_of = json.loads((fluent_dir / "chars.json").read_text(encoding="utf-8"))
    drawings = []
    for label, codes in enumerate(concepts):
        name = icon_name(codes, icon_of)
        icon = icons["icons"][name]
        width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{SIDE}" height="{SIDE}" '
            f'viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
        )
        drawings.append(Drawing(label, f"npm:@iconify-json/fluent-emoji-flat/{name}", svg))
    return drawings


def webp_of(svg: str) -> bytes:
    """Return a drawing on white, like the pool's, as the bytes of a WebP file."""
    with Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg)))) as opened:
        drawing = opened.convert("RGBA")
    on_white = Image.alpha_composite(Image.new("RGBA", drawing.size, "white"), drawing)
    stored = io.BytesIO()
    on_white.convert("RGB").save(stored, "WEBP", quality=WEBP_QUALITY, method=6)
    return stored.getvalue()


def write_tar(path: Path, shard: int, drawings: list[Drawing]) -> None:
    """Write a webdataset shard with KEY.webp and KEY.cls, the label as text, for each drawing."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for row, drawing in enumerate(drawings):
            members = {"webp": webp_of(drawing.svg), "cls": str(drawing.label).encode()}
            for suffix, content in members.items():
                member = tarfile.TarInfo(f"{shard:05d}{row:04d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def main() -> None:
    """Read the pool's concepts, draw them, and write the set."""
    parser = Parser(description=__doc__)
    parser.add_argument("--fluent_dir", type=Path, required=True, help="unpacked npm package")
    parser.add_argument("--pool_dir", type=Path, required=True, help="the demo pool")
    parser.add_argument("--out", type=Path, required=True, help="the set's folder")
    args = parser.parse_args()

    concepts = pool_concepts(args.pool_dir)
    drawings = read_drawings(args.fluent_dir, concepts)
    args.out.mkdir(parents=True, exist_ok=True)
    for old in args.out.glob("*.tar"):
        old.unlink()
    for shard in range(SHARDS):
        write_tar(args.out / f"{shard:08d}.tar", shard, drawings[shard::SHARDS])
    for name, lines in (
        ("classnames.txt", tuple(concepts.values())),
        ("zeroshot_classification_templates.txt", TEMPLATES),
    ):
        (args.out / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    size = sum(path.stat().st_size for path in args.out.glob("*.tar"))
    say(f"{len(drawings)} drawings of as many classes, {size:,} bytes")
