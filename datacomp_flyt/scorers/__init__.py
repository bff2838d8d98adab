"""Methods that score a pool, one file each. None of these imports torch."""

from datacomp_flyt.scorers.e_flyt.e_flyt import e_flyt_scores
from datacomp_flyt.scorers.e_flyt.glu_head import GluHead, GluLayer
from datacomp_flyt.scorers.e_flyt.glu_head_file import load_glu_head, save_glu_head

__all__ = ["GluHead", "GluLayer", "e_flyt_scores", "load_glu_head", "save_glu_head"]
