"""The twelve input scores that FLYT's authors published, with their figures of Table 2."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedScore:
    """A column of the published table.

    Attributes:
        column: its name there.
        scorer: our scorer that makes it (`datacomp-flyt score --scorer NAME`).
        weight: linear weight on the standardised column (Table 2).
        imagenet_accuracy: of a CLIP model trained on this score's top 20% (Table 2). HYPE's three
            columns share one value, and so do s-CLIPLoss and NormSim, as the merged cells of the
            table suggest.
        metadata_column: the column of DataComp's metadata that holds the same score, if one does.
    """

    column: str
    scorer: str
    weight: float
    imagenet_accuracy: float
    metadata_column: str | None = None


PUBLISHED_SCORES = (
    PublishedScore("vit-b-32", "clip_score", 0.08, 0.282, "clip_b32_similarity_score"),
    PublishedScore("vit-l-14", "clip_score", 0.21, 0.267, "clip_l14_similarity_score"),
    PublishedScore("DFN-Base", "dfn", 0.60, 0.297),
    PublishedScore("DFN-FT", "dfn", 0.80, 0.342),
    PublishedScore("CC2M-Classifier", "linear_classifier", 0.17, 0.287),
    PublishedScore("IN1K-Classifier", "linear_classifier", 0.36, 0.268),
    PublishedScore("FLYT", "e_flyt", 0.65, 0.316),
    PublishedScore("normsim_inf", "norm_sim", 0.55, 0.331),
    PublishedScore("negCLIPLoss", "neg_clip_loss", 0.51, 0.331),
    PublishedScore("hype_lorentzian_distance", "hype", 0.45, 0.309),
    PublishedScore("hype_image_specificity", "hype", -0.05, 0.309),
    PublishedScore("hype_text_specificity", "hype", 0.02, 0.309),
)
"""In the order of the weights in the published `mflyt.pt`. `hype_lorentzian_distance` holds the
negated distance -d_L, so that more is better as everywhere."""

PUBLISHED_COLUMNS = tuple(score.column for score in PUBLISHED_SCORES)
HYPE_COLUMNS = tuple(score.column for score in PUBLISHED_SCORES if score.scorer == "hype")
SCORER_OF = {score.column: score.scorer for score in PUBLISHED_SCORES}
METADATA_COLUMN_OF = {
    score.column: score.metadata_column for score in PUBLISHED_SCORES if score.metadata_column
}
