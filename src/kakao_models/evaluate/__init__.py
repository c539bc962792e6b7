"""Every number that the papers and cards report, from embeddings; loaded on first use, without any framework."""

import importlib

# public name -> module that defines it
_MODULES = {
    "cache": ("CachedEmbedder",),
    "calibration": ("Calibration", "calibration_scores"),
    "classify": ("Classification", "MultiLabel", "classification_scores", "multilabel_scores", "real_scores"),
    "class_names": ("read_class_index", "read_class_names"),
    "datasets": ("Captioned", "Labelled", "read_captioned", "read_labelled", "read_many_labels"),
    "knn": ("KnnResult", "knn_scores", "nearest"),
    "linear_probe": ("LinearProbe", "linear_probe_scores", "vtab_scores"),
    "report": ("html_report", "markdown_report", "model_index"),
    "results": ("Result",),
    "retrieval": ("Ranking", "Retrieval", "first_ranks", "fold_scores", "retrieval_scores"),
    "similarity": ("Correlation", "read_ratings", "similarity_scores", "spearman"),
    "templates": ("SMALL_TEMPLATES", "read_templates"),
    "zero_shot": ("ZeroShot", "class_embeddings", "zero_shot_scores"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'kakao_models.evaluate' has no attribute {name!r}. It has: {', '.join(__all__)}")
    value = getattr(importlib.import_module(f"kakao_models.evaluate.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
