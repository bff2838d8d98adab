"""open_clip's own trainer with weighted examples, a subset read from the original shards, or both.

Legend of this package: B rows of a contrastive batch over all ranks (and micro-batches, with
`--accum-freq`), b those of one rank, D embedding, L tokens of a text, w weights.
"""

from datacomp_flyt.open_clip_hook.hook import Hook, install_hook

__all__ = ["Hook", "install_hook"]
