"""The scores that are made of marks, once all data are seen."""

from collections.abc import Sequence

import torch

from pyro_laplace.scores.formulas import brier_scores, calibration_error, roc_area
from pyro_laplace.scores.levels import Levels, Marks


def joined_marks(parts: Sequence[Marks]) -> Marks:
    """One behind the other."""
    return {name: torch.cat([each[name] for each in parts]) for name in parts[0]}


def names_of_scores(is_class: bool, levels: Levels) -> list[str]:
    """The scores beside the density that `row_of` has of classes, or of numbers with their widths."""
    if is_class:
        return ["accuracy", "brier", "ece", "auroc"]
    return ["rmse", "crps", *(f"{name}_{100 * level:.4g}" for level in levels.levels for name in ("coverage", "width"))]


def row_of(marks: Marks, num_bins: int, levels: Levels, widths: bool = False) -> dict[str, float]:
    """The scores of one site.

    Args:
        marks: of all data.
        num_bins: of the calibration error.
        levels: of the intervals.
        widths: whether to tell their mean width too.

    Returns:
        name to number.
    """
    row = {"nll": -float(marks["log_prob"].mean())} if "log_prob" in marks else {}
    if "labels" in marks:
        probs, labels = marks["probs"], marks["labels"]
        row["accuracy"] = float((probs.argmax(-1) == labels).double().mean())
        row["brier"] = float(brier_scores(probs, labels).mean())
        row["ece"] = calibration_error(probs, labels, num_bins)
        row["auroc"] = roc_area(probs, labels)
    elif "crps" in marks:
        row["rmse"] = float(marks["square"].mean().sqrt())
        row["crps"] = float(marks["crps"].mean())
        for level in levels.levels:
            low, high = levels.bounds(level, marks["quantiles"])
            inside = (low <= marks["truth"]) & (marks["truth"] <= high)
            row[f"coverage_{100 * level:.4g}"] = float(inside.double().mean())
            if widths:
                row[f"width_{100 * level:.4g}"] = float((high - low).mean())
    return row
