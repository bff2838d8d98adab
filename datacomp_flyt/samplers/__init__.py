"""Sampling methods, one file each: from scores, how often each example is drawn."""

from datacomp_flyt.samplers.hard_cap import hard_cap_counts
from datacomp_flyt.samplers.no_cap import no_cap_counts
from datacomp_flyt.samplers.soft_cap import soft_cap_counts
from datacomp_flyt.samplers.top_fraction import top_fraction_counts

__all__ = ["hard_cap_counts", "no_cap_counts", "soft_cap_counts", "top_fraction_counts"]
