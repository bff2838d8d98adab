"""Remove a round's embeddings, which are as large as the pool times the model is wide.

    python -m datacomp_flyt.self_filtering.delete_embeddings round_0

Its metadata, scores and checkpoints stay.
"""

from __future__ import annotations

from datacomp_flyt.exits import Parser, run_main

if __name__ == "__main__":  # all else is imported where Ctrl-C has a handler
    run_main("datacomp_flyt.self_filtering.delete_embeddings")

from pathlib import Path

from datacomp_flyt.streams import say


def main() -> None:
    """The command above."""
    parser = Parser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("round", type=Path, help="folder of the round")
    paths = sorted(parser.parse_args().round.glob("metadata/*.npz"))
    size = sum(path.stat().st_size for path in paths)
    for path in paths:
        path.unlink()
    say(f"{len(paths):,} npz removed, {size:,} bytes")
