"""Chooses a classifier's loss (regression, one class, several classes) by its labels, for all frameworks."""

from typing import Any


def problem_type_of(model: Any, labels_shape: tuple, labels_dtype: str, logits_shape: tuple) -> str:
    """The loss to compute: `config.problem_type`, or by default, as in transformers, the one that the first labels imply. It is
    noted in the configuration: a saved model gives the scores (softmax or sigmoid) that it was trained for.

    Args:
        labels_shape: (B,) or (B, classes); B is None where it is not known.
        logits_shape: (B, classes).

    Raises:
        ValueError: these are not labels of that type for these logits.
    """
    name, classes, problem_type = type(model).__name__, model.num_labels, model.config.problem_type
    single = labels_shape[1:] in ((), (1,))
    if problem_type is None and classes == 1:
        problem_type = "regression"
    elif problem_type is None:
        one_class = "int" in labels_dtype and single
        problem_type = "single_label_classification" if one_class else "multi_label_classification"
    if None not in (labels_shape[0], logits_shape[0]) and labels_shape[0] != logits_shape[0]:
        raise ValueError(f"{name}: got labels for {labels_shape[0]} images and logits for {logits_shape[0]} images")
    if problem_type == "single_label_classification":
        fits = single
    else:
        fits = labels_shape[1:] == logits_shape[1:] or (problem_type == "regression" and classes == 1 and single)
    if not fits:
        raise ValueError(
            f"{name}: labels of shape {labels_shape} and type {labels_dtype} do not fit {problem_type} with {classes} classes. "
            f"Expected whole numbers (batch,), or numbers in [0, 1] (batch, {classes})"
        )
    model.config.problem_type = problem_type
    return problem_type
