"""Every number that the papers and cards report, from embeddings; loaded on first use, without any framework."""

from typing import TYPE_CHECKING

from kakao_models.lazy import attach

if TYPE_CHECKING:  # the names of `_MODULES`, for type checkers and editors
    from kakao_models.evaluate.audit import (
        Gap as Gap,
        Grouped as Grouped,
        Skew as Skew,
        audit_table as audit_table,
        gap_scores as gap_scores,
        read_grouped as read_grouped,
        skew_scores as skew_scores,
    )
    from kakao_models.evaluate.cache import CachedEmbedder as CachedEmbedder
    from kakao_models.evaluate.calibration import Calibration as Calibration, calibration_scores as calibration_scores
    from kakao_models.evaluate.class_names import (
        read_class_index as read_class_index,
        read_class_names as read_class_names,
    )
    from kakao_models.evaluate.classify import (
        Classification as Classification,
        MultiLabel as MultiLabel,
        classification_scores as classification_scores,
        multilabel_scores as multilabel_scores,
        real_scores as real_scores,
    )
    from kakao_models.evaluate.datasets import (
        Captioned as Captioned,
        Labelled as Labelled,
        read_captioned as read_captioned,
        read_labelled as read_labelled,
        read_many_labels as read_many_labels,
    )
    from kakao_models.evaluate.knn import KnnResult as KnnResult, knn_scores as knn_scores, nearest as nearest
    from kakao_models.evaluate.linear_probe import (
        LinearProbe as LinearProbe,
        linear_probe_scores as linear_probe_scores,
        vtab_scores as vtab_scores,
    )
    from kakao_models.evaluate.pairs import (
        Pairs as Pairs,
        PairScores as PairScores,
        pair_scores as pair_scores,
        read_pairs as read_pairs,
    )
    from kakao_models.evaluate.report import (
        html_report as html_report,
        markdown_report as markdown_report,
        model_index as model_index,
    )
    from kakao_models.evaluate.results import Result as Result
    from kakao_models.evaluate.retrieval import (
        Ranking as Ranking,
        Retrieval as Retrieval,
        first_ranks as first_ranks,
        fold_scores as fold_scores,
        retrieval_scores as retrieval_scores,
    )
    from kakao_models.evaluate.similarity import (
        Correlation as Correlation,
        read_ratings as read_ratings,
        similarity_scores as similarity_scores,
        spearman as spearman,
    )
    from kakao_models.evaluate.templates import SMALL_TEMPLATES as SMALL_TEMPLATES, read_templates as read_templates
    from kakao_models.evaluate.zero_shot import (
        ZeroShot as ZeroShot,
        class_embeddings as class_embeddings,
        zero_shot_scores as zero_shot_scores,
    )

# module -> public names that it defines
_MODULES = {
    ".audit": ("Gap", "Grouped", "Skew", "audit_table", "gap_scores", "read_grouped", "skew_scores"),
    ".cache": ("CachedEmbedder",),
    ".calibration": ("Calibration", "calibration_scores"),
    ".classify": ("Classification", "MultiLabel", "classification_scores", "multilabel_scores", "real_scores"),
    ".class_names": ("read_class_index", "read_class_names"),
    ".datasets": ("Captioned", "Labelled", "read_captioned", "read_labelled", "read_many_labels"),
    ".knn": ("KnnResult", "knn_scores", "nearest"),
    ".linear_probe": ("LinearProbe", "linear_probe_scores", "vtab_scores"),
    ".pairs": ("PairScores", "Pairs", "pair_scores", "read_pairs"),
    ".report": ("html_report", "markdown_report", "model_index"),
    ".results": ("Result",),
    ".retrieval": ("Ranking", "Retrieval", "first_ranks", "fold_scores", "retrieval_scores"),
    ".similarity": ("Correlation", "read_ratings", "similarity_scores", "spearman"),
    ".templates": ("SMALL_TEMPLATES", "read_templates"),
    ".zero_shot": ("ZeroShot", "class_embeddings", "zero_shot_scores"),
}

__getattr__, __dir__, __all__ = attach(__name__, _MODULES)
