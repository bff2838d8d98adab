"""Build the scoring model of a training, and the source of its features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from datacomp_flyt.clip.models import load_clip_model
from datacomp_flyt.distributed.collectives import rank_and_world_size
from datacomp_flyt.errors import InputError
from datacomp_flyt.flyt.scoring_models import GluHead, MixingModel, ScoringModel
from datacomp_flyt.flyt.training_config import TrainingConfig
from datacomp_flyt.flyt.uid_features import UidFeatures, embedding_features, score_features


@dataclass(frozen=True)
class Scoring:
    """A scoring model and the source of its features.

    Attributes:
        model: the scoring model q_φ.
        table: features by uid; None if an extractor computes them.
        extractor: the CLIP model that computes features; None if a table holds them.
    """

    model: ScoringModel
    table: UidFeatures | None
    extractor: nn.Module | None


def make_scoring(config: TrainingConfig) -> Scoring:
    """Build the scoring model that `config.features` selects; the seed determines its weights.

    Raises:
        InputError: a folder, column, array or model that this needs is missing or unsuitable.
    """
    torch.manual_seed(config.seed)
    if config.features == "scores":
        scoring = _mixing_model(config)
    elif config.features == "embeddings":
        scoring = _head_on_embeddings(config)
    else:
        scoring = _head_on_images(config)
    if config.scoring_init is not None:
        scoring.model.load(str(config.scoring_init))
    return scoring


def check_same_inputs(config: TrainingConfig, reference: Any, extractor: Any) -> None:
    """Raise InputError unless both CLIP models take the same image size and text length.

    The extractor is given the images and tokens that are made for the reference model.
    """
    for kind, of_extractor, of_reference in (
        ("images of", extractor.visual.image_size, reference.visual.image_size),
        ("texts of", extractor.context_length, reference.context_length),
    ):
        if of_extractor != of_reference:
            raise InputError(
                f"--extractor_model {config.extractor_model} takes {kind} {of_extractor} and "
                f"--reference_model {config.reference_model} of {of_reference}: give models that "
                "take the same"
            )


def _mixing_model(config: TrainingConfig) -> Scoring:
    if config.scores_dir is None and config.metadata_dir is None:
        raise InputError("--features scores wants --scores_dir, the folder of score tables")
    scores = score_features(
        None if config.scores_dir is None else str(config.scores_dir),
        config.score_columns,
        _num_threads(),
        metadata_dir=None if config.metadata_dir is None else str(config.metadata_dir),
        allow_partial=config.allow_partial_scores,
        drop_nonfinite=config.drop_nonfinite,
        progress=rank_and_world_size()[0] == 0,
    )
    statistics = None if config.no_standardize else (scores.mean.tolist(), scores.std.tolist())
    return Scoring(MixingModel(config.score_columns, statistics), scores.features, None)


def _head_on_embeddings(config: TrainingConfig) -> Scoring:
    if config.metadata_dir is None:
        raise InputError("--features embeddings wants --metadata_dir, with npz files in it")
    table = embedding_features(
        str(config.metadata_dir), config.embedding_arrays, _num_threads(), config.drop_nonfinite
    )
    return Scoring(_head(config, table.values.shape[1], config.embedding_arrays), table, None)


def _head_on_images(config: TrainingConfig) -> Scoring:
    extractor = load_clip_model(
        str(config.extractor_model), str(config.extractor_init), "extractor", seed=config.seed
    ).model
    return Scoring(_head(config, 2 * _embedding_width(extractor), None), None, extractor)


def _head(config: TrainingConfig, width: int, arrays: tuple[str, ...] | None) -> GluHead:
    return GluHead(width, arrays, config.glu_layers, config.glu_hidden_ratio, config.cosine_start)


def _embedding_width(model: Any) -> int:
    with torch.no_grad():
        return int(model.encode_text(torch.zeros(1, model.context_length).long()).shape[1])


def _num_threads() -> int:
    return max(torch.get_num_threads(), 1)
