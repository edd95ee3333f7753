"""The one home of metrics: few enough scalars, unique names, units and meanings for all."""

from collections import Counter

import pytest

from mermaide_ray.metrics import (
    METRICS,
    MOST_SCALARS,
    ROW_METRICS,
    SCALAR_GROUPS,
    SCALARS,
    is_score,
    is_validation,
    k_of,
    score_key,
    validation_key,
    validation_metric,
)


def test_tensorboard_gets_at_most_25_scalars() -> None:
    assert len(SCALARS) <= MOST_SCALARS == 25


def test_no_two_metrics_share_a_key() -> None:
    counts = Counter(metric.key for metric in ROW_METRICS + SCALARS)
    assert max(counts.values()) == 1
    assert METRICS.keys() == counts.keys()


@pytest.mark.parametrize("metric", METRICS.values(), ids=lambda metric: metric.key)
def test_every_metric_has_a_unit_and_a_meaning(metric) -> None:
    assert metric.unit.strip()
    assert metric.meaning.strip()


def test_training_scalars_are_grouped_and_row_metrics_are_not() -> None:
    assert {metric.key.split("/")[0] for metric in SCALARS} == set(SCALAR_GROUPS)
    assert all("/" in metric.key for metric in SCALARS)
    assert not any("/" in metric.key for metric in ROW_METRICS)


def test_validation_scores_of_any_k_are_named_alike() -> None:
    assert validation_key(1) == "validation/score_k1"
    assert METRICS[validation_key(1)] == validation_metric(1)
    assert validation_metric(5).key == "validation/score_k5"
    assert "after 5 support" in validation_metric(5).meaning


def test_scores_are_told_from_all_else_by_their_keys() -> None:
    final, round_of = [score_key("far_k2", k) for k in (0, 10)], [validation_key(k) for k in (0, 10)]
    assert final == ["score/far_k2_k0", "score/far_k2_k10"]
    for keys in (final, round_of):
        assert [k_of(key) for key in keys] == [0, 10]
    every = [*METRICS, *final, *round_of]
    assert [key for key in every if is_score(key)] == final
    assert set(filter(is_validation, every)) == {validation_key(k) for k in (0, 1, 10)}
