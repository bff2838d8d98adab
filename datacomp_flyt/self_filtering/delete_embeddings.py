"""Delete a round's embeddings (npz), which are the largest files of a round.

    python -m datacomp_flyt.self_filtering.delete_embeddings round_0

Its metadata, scores and checkpoints stay.
"""

from __future__ import annotations

from datacomp_flyt.exits import Parser, run_main

if __name__ == "__main__":  # all else is imported where Ctrl-C has a handler
    run_main("datacomp_flyt.self_filtering.delete_embeddings")

from pathlib import Path

from datacomp_flyt.streams import say


def delete_embeddings(round_dir: Path) -> None:
    """Delete `ROUND_DIR/metadata/*.npz`, and print their number and size."""
    paths = sorted(round_dir.glob("metadata/*.npz"))
    size = sum(path.stat().st_size for path in paths)
    for path in paths:
        path.unlink()
    say(f"{len(paths):,} npz removed, {size:,} bytes")


def main() -> None:
    """Parse the flags and call `delete_embeddings`."""
    parser = Parser(description=__doc__)
    parser.add_argument("round", type=Path, help="folder of the round")
    delete_embeddings(parser.parse_args().round)
