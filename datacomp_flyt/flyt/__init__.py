"""Learn a scoring model: Filter Like You Test (FLYT)."""

from datacomp_flyt.flyt.metagradient import weight_metagradient
from datacomp_flyt.flyt.weighted_clip_loss import weighted_clip_loss

__all__ = ["weight_metagradient", "weighted_clip_loss"]
