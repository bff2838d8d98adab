"""IN1K-Classifier and CC2M-Classifier: similarity of an example to those of a better dataset.

The score is the logit of a linear classifier that separates a "high quality" dataset from the pool
by CLIP embeddings: ImageNet's training images by image alone, CC2M by image and text (FLYT, B.2).
`datacomp-flyt train_classifier` trains such classifiers.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from datacomp_flyt.errors import InputError
from datacomp_flyt.files.digest import file_digest
from datacomp_flyt.pool.embeddings import embedding_widths, iter_embeddings
from datacomp_flyt.pool.parquet import ParquetShard
from datacomp_flyt.scorers.base.flags import add_renormalize
from datacomp_flyt.scorers.base.scorer import Arrays, MetadataScorer
from datacomp_flyt.scorers.linear_classifier.classifier_file import load_classifier

_PUBLISHED_ARRAYS = {512: ("b32_img",), 1024: ("b32_img", "b32_txt")}
_ENDINGS = {"img": "image", "image": "image", "txt": "text", "text": "text"}
_COLUMNS = {("image",): "IN1K-Classifier", ("image", "text"): "CC2M-Classifier"}


class LinearClassifier(MetadataScorer):
    """Logits of a linear classifier on npz embeddings; positives have higher ones."""

    def __init__(
        self,
        classifier: str,
        *,
        arrays: Sequence[str] | None = None,
        positive_class: int = 1,
        renormalize: bool = False,
        column: str | None = None,
    ) -> None:
        """
        Args:
            classifier: the classifier's file, see `load_classifier`.
            arrays: npz arrays, side by side in this order; None for those that it was trained on,
                or, if the file does not name them, those of the published classifiers.
            positive_class: see `load_classifier`.
            renormalize: scale each array's part of a row to unit norm; otherwise as stored.
            column: the name of the score; None for the published one.

        Raises:
            InputError: the file holds no classifier, or its arrays or the name of its score are not
                known.
        """
        self.model = load_classifier(classifier, positive_class)
        self.classifier, self.renormalize = classifier, renormalize
        width = len(self.model.weight)
        self.arrays = tuple(arrays or self.model.arrays or _PUBLISHED_ARRAYS.get(width, ()))
        if not self.arrays:
            raise InputError(
                f"--classifier {classifier} takes {width} numbers and does not say which "
                "embeddings they are (512 would be b32_img, 1024 b32_img and b32_txt): name them "
                "with --arrays"
            )
        # b32_img of DataComp, oai-clip-vit-b32-image of dataset2metadata
        kinds = (name.replace("-", "_").rsplit("_", 1)[-1] for name in self.arrays)
        column = column or _COLUMNS.get(tuple(_ENDINGS.get(kind, "") for kind in kinds))
        if column is None:
            raise InputError(
                f"--classifier {classifier} takes {' '.join(self.arrays)}, neither one array of "
                "images nor one of images and one of texts, so its score has no published name: "
                "give it one with --column"
            )
        self.columns = (column,)
        self.settings = {
            "classifier": file_digest(classifier),
            "positive_class": positive_class,
            "arrays": list(self.arrays),
            "renormalize": renormalize,
        }

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        add_renormalize(parser)
        parser.add_argument(
            "--classifier",
            metavar="FILE",
            required=True,
            help="IN1K-Classifier.pt or CC2M-Classifier.pt, or what `datacomp-flyt "
            "train_classifier` wrote",
        )
        parser.add_argument(
            "--arrays",
            nargs="+",
            metavar="NAME",
            help="npz arrays that it takes, in this order (default: those that it was trained on; "
            "b32_img for a published one of width 512, b32_img b32_txt for 1024)",
        )
        parser.add_argument(
            "--positive_class",
            type=int,
            choices=(0, 1),
            default=1,
            help="0 turns the score round, for a file whose first class is the positive one",
        )

    def score_rows(
        self, shard: ParquetShard, state: Arrays, counts: Counter[str]
    ) -> NDArray[np.float32]:
        widths, wanted = embedding_widths(shard, self.arrays), len(self.model.weight)
        if sum(widths) != wanted:
            raise InputError(
                f"{shard.npz} has {' + '.join(map(str, widths))} columns in "
                f"{', '.join(self.arrays)} and --classifier {self.classifier} takes {wanted}: "
                "name the arrays that it was trained on with --arrays"
            )
        blocks = iter_embeddings(shard, self.arrays, normalize=self.renormalize, counts=counts)
        scores = [self.model.logits(block) for block in blocks]
        return np.concatenate(scores) if scores else np.empty(0, np.float32)
