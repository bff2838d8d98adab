"""Replaces functions of open_clip's trainer: weighted examples, subsets of the original shards.

Symbols in this package: B is the number of rows of a contrastive batch over all ranks (and
micro-batches, with `--accum-freq`), b the number of one rank's rows, D the embedding dimension, L
the context length, w the weights.
"""

from datacomp_flyt.open_clip_hook.hook import Hook, install_hook

__all__ = ["Hook", "install_hook"]
