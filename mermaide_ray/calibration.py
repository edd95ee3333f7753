"""How well the world model predicts: likelihood, accuracy, calibration, and the floor that knows nothing of the agent.

Shapes: B tasks, T pulls, E query episodes, A arms, d coordinates of a point.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mermaide_ray.calibration_bins import pooled_bins
from mermaide_ray.learners.losses import prediction_nll
from mermaide_ray.models.categorical import ArmHead, log_softmax
from mermaide_ray.models.mixture import MixtureHead

CALIBRATION_BINS = 15


def prediction_scores(head: ArmHead | MixtureHead, raw: Tensor, labels: Tensor) -> dict[str, Any]:
    """Negative log-likelihood, accuracy and calibration error of the next arm or point, numpy [B] each.

    Calibration error: Guo et al., arXiv 1706.04599, Eq. 3, over CALIBRATION_BINS equal bins of the likeliest arm's
    probability. Of points: the mean gap between the share of PIT values (`MixtureHead.pit`) below each of the bins'
    inner edges and that edge, per coordinate, then the mean over coordinates; from 0 to 1/2.
    """
    hit = head.hits(raw, labels).float()
    if isinstance(head, MixtureHead):
        shares, edges = _shares_below(head.pit(raw, labels))
        error = (shares - edges).abs().mean((1, 2))
    else:
        error, confidence = torch.zeros(len(labels)), log_softmax(raw).exp().amax(-1)
        bins = _bins(confidence)
        for index in range(CALIBRATION_BINS):
            error += ((confidence - hit) * (bins == index)).mean((1, 2)).abs()
    nll = prediction_nll(head, raw, labels)
    return {"nll": nll.numpy(), "accuracy": hit.mean((1, 2)).numpy(), "ece": error.numpy()}


def calibration(head: ArmHead | MixtureHead, raw: Tensor, labels: Tensor, families: list[str]) -> pd.DataFrame:
    """The calibration curve by family: of arms the reliability curve, of points that of PIT values."""
    if isinstance(head, MixtureHead):
        return point_calibration(head.pit(raw, labels), families)
    return arm_calibration(raw, labels, families)


def arm_calibration(logits: Tensor, labels: Tensor, families: list[str]) -> pd.DataFrame:
    """The reliability curve: per family and bin, count, mean confidence and share of hits."""
    confidence, guess = logits.softmax(-1).max(-1)
    batch, per_task = len(labels), labels[0].numel()
    frame = pd.DataFrame(
        {
            "family": np.repeat(families, per_task),
            "bin": _bins(confidence).view(batch, -1).flatten().numpy(),
            "confidence": confidence.flatten().numpy(),
            "frequency": (guess == labels).float().flatten().numpy(),
        }
    )
    grouped = frame.groupby(["family", "bin"])
    return grouped.mean().assign(count=grouped.size()).reset_index()


def _shares_below(pit: Tensor) -> tuple[Tensor, Tensor]:
    """Shares of PIT values [B, T, E, d] below the inner edges of CALIBRATION_BINS equal bins, [B, d, bins - 1]; edges.

    Source: Gneiting, Balabdaoui, Raftery: Probabilistic Forecasts, Calibration and Sharpness, JRSS B 2007.
    """
    edges = torch.arange(1, CALIBRATION_BINS) / CALIBRATION_BINS
    return (pit.flatten(1, 2).unsqueeze(-1) < edges).float().mean(1), edges


def point_calibration(pit: Tensor, families: list[str]) -> pd.DataFrame:
    """Calibration of densities, from PIT values [B, T, E, d]: per family, coordinate and inner edge of the bins.

    The columns are those of the reliability curve, so that both are pooled and drawn alike: `confidence` is the edge,
    a nominal probability, `frequency` the share of PIT values below it, `count` their number.
    """
    shares, edges = _shares_below(pit)
    batch, dimensions, inner = shares.shape
    frame = pd.DataFrame(
        {
            "family": np.repeat(families, dimensions * inner),
            "coordinate": np.tile(np.repeat(np.arange(1, dimensions + 1), inner), batch),
            "bin": np.tile(np.arange(inner), batch * dimensions),
            "confidence": edges.repeat(batch * dimensions).numpy(),
            "frequency": shares.flatten().numpy(),
        }
    )
    grouped = frame.groupby(["family", "coordinate", "bin"])
    return grouped.mean().assign(count=grouped.size() * pit[0, ..., 0].numel()).reset_index()


def _bins(confidence: Tensor) -> Tensor:
    return (confidence * CALIBRATION_BINS).long().clamp_(max=CALIBRATION_BINS - 1)


def frequency_floor(labels: Tensor, num_arms: int) -> dict[str, Any]:
    """Floor: the agent's own running frequencies with one pseudo-count per arm (Laplace), for labels [B, T, E].

    Returns:
        Negative log-likelihood and accuracy, numpy [B] each. Of several likeliest arms any of them is the guess.
    """
    loss, hits = torch.zeros(labels.shape[0]), torch.zeros(labels.shape[0])
    counts = torch.ones(labels.shape[0], labels.shape[2], num_arms)
    for t in range(labels.shape[1]):
        index = labels[:, t].unsqueeze(-1)
        count, most = counts.gather(-1, index), counts.amax(-1, keepdim=True)
        loss -= (count.squeeze(-1) / (num_arms + t)).log().mean(1)
        hits += ((count == most) / (counts == most).sum(-1, keepdim=True)).squeeze(-1).mean(1)
        counts.scatter_add_(-1, index, torch.ones_like(index, dtype=counts.dtype))
    pulls = labels.shape[1]
    return {"wm_nll_frequency": (loss / pulls).numpy(), "wm_accuracy_frequency": (hits / pulls).numpy()}


def pooled(curves: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Calibration curves of several parts of the tasks as one."""
    filled = [curve for curve in curves if len(curve)]
    if not filled:
        return pd.DataFrame()
    stacked = pd.concat(filled, ignore_index=True)
    by_coordinate = ["coordinate"] if "coordinate" in stacked else []
    return pooled_bins(stacked, ["method", "seed", "split", "condition", "k", "family", *by_coordinate, "bin"])
