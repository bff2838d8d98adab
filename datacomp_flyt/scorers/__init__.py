"""Methods that give each example of a pool a score: one file a method, and `base/` that runs them.

The names exported here can be imported without torch.
"""

from datacomp_flyt.scorers.base.scorer import MetadataScorer, PoolScorer, Scorer
from datacomp_flyt.scorers.e_flyt.e_flyt import e_flyt_scores
from datacomp_flyt.scorers.e_flyt.glu_head import GluHead, GluLayer
from datacomp_flyt.scorers.e_flyt.glu_head_file import load_glu_head, save_glu_head

__all__ = [
    "GluHead",
    "GluLayer",
    "MetadataScorer",
    "PoolScorer",
    "Scorer",
    "e_flyt_scores",
    "load_glu_head",
    "save_glu_head",
]
