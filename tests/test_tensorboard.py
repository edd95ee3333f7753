"""What TensorBoard is given to show, without a run."""

from __future__ import annotations

import re
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import metadata

from mermaide_ray.experiment import Experiment
from mermaide_ray.metrics import MOST_SCALARS, SCALARS, validation_key
from mermaide_ray.tensorboard import Board

KS = (0, 1, 2, 5, 10)
SETTINGS = {"environment.num_arms": 20, "agents.families": "ucb", "seed": 3}
WORDS = {"agents.families": ["ucb", "softmax"]}


def written(folder: Path) -> EventAccumulator:
    """The events of a run that is validated at many K, and scored in many conditions."""
    board = Board(folder)
    board.begin(Experiment(), SETTINGS, "How many arms can a principal steer?")
    told = {metric.key: 1.0 for metric in SCALARS} | {validation_key(k): float(k) for k in KS}
    board.scalars({"iteration": 1, **told}, 100)
    scores = {f"score/{place}_k{k}": 0.5 for place in ("validation", "test", "far") for k in KS}
    board.finish(SETTINGS, scores, [], 100, WORDS)
    board.close()
    return EventAccumulator(str(folder)).Reload()


def test_many_adaptation_numbers_and_conditions_stay_within_the_most_that_people_look_at(tmp_path: Path) -> None:
    shown = written(tmp_path).Tags()["scalars"]
    assert len(shown) <= MOST_SCALARS
    assert {key for key in shown if key.startswith("validation/")} == {validation_key(0), validation_key(10)}
    # What decides comes first: the largest K in each condition.
    assert {"score/validation_k10", "score/test_k10", "score/far_k10", "score/validation_k0"} == {
        key for key in shown if key.startswith("score/")
    }


def test_the_layout_has_a_chart_for_each_curve_and_no_chart_without_one(tmp_path: Path) -> None:
    events = written(tmp_path)
    layout = layout_pb2.Layout.FromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    patterns = [tag for category in layout.category for chart in category.chart for tag in chart.multiline.tag]
    curves = {key for key in events.Tags()["scalars"] if not key.startswith("score/")}
    found = {pattern: {key for key in curves if re.fullmatch(pattern, key)} for pattern in patterns}
    assert all(found.values()), found
    assert set().union(*found.values()) == curves


def test_a_run_of_a_sweep_shows_its_question_and_only_what_is_swept(tmp_path: Path) -> None:
    events = written(tmp_path)
    [about] = events.Tensors("about/text_summary")
    text = about.tensor_proto.string_val[0].decode()
    assert text.startswith("How many arms can a principal steer?\n\n    environment.num_arms: 20\n")
    content = events.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    assert set(metadata.parse_session_start_info_plugin_data(content).hparams) == set(SETTINGS)


def test_settings_that_are_words_can_be_filtered_by(tmp_path: Path) -> None:
    content = written(tmp_path).SummaryMetadata(metadata.EXPERIMENT_TAG).plugin_data.content
    known = {info.name: info for info in metadata.parse_experiment_plugin_data(content).hparam_infos}
    assert list(known["agents.families"].domain_discrete) == WORDS["agents.families"]
