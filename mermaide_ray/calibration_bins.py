"""Bins of a calibration curve, as `calibration.py` counts them and reports draw them: pooled, and their error.

Columns: `bin`, `count` (predictions in it), and the two shares, `confidence` (predicted) and `frequency` (observed).
Without Torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

SHARES = ("confidence", "frequency")


def pooled_bins(bins: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Bins that are alike in these columns as one: counts add up, shares are means weighted by them.

    Args:
        bins: Those of several parts of the tasks, of several families or seeds; empty ones do not count.
        keys: Columns that stay; the others are pooled over.
    """
    filled = bins[bins["count"] > 0]
    weighted = filled.assign(**{name: filled[name] * filled["count"] for name in SHARES})
    sums = weighted.groupby(list(keys), as_index=False)[["count", *SHARES]].sum()
    return sums.assign(**{name: sums[name] / sums["count"] for name in SHARES})


def of_points(calibration: pd.DataFrame) -> bool:
    """Whether rows of calibration.parquet are of the continuous game: by coordinate, no other rows have one."""
    return "coordinate" in calibration and bool(calibration["coordinate"].notna().all())


def calibration_error(bins: pd.DataFrame) -> float:
    """Expected calibration error: mean over predictions of |confidence - frequency| of their bin.

    Of points, whose bins all count alike: the mean gap of the PIT's distribution function to the uniform one.

    Source: Guo, Pleiss, Sun, Weinberger: On Calibration of Modern Neural Networks, ICML 2017, Eq. 3.
    """
    gaps = (bins["confidence"] - bins["frequency"]).abs()
    return float((gaps * bins["count"]).sum() / bins["count"].sum())
