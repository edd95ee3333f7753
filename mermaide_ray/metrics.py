"""Every metric: its key, its unit, what it means. The one home of all three; imports nothing heavy.

Three kinds. Row metrics are columns of `rows.parquet` (evaluation: one row per method x training seed x task x K).
Training scalars are the keys of `progress.jsonl` and of TensorBoard, over environment steps. Final scores (`score_key`)
stand beside a run's settings in TensorBoard and in `trials.parquet`. Names are flat and the same everywhere: in files,
in TensorBoard, in YAML.
"""

from __future__ import annotations

from dataclasses import dataclass

# TensorBoard is read by people: more curves than this, and nobody looks at any of them.
MOST_SCALARS = 25
SCALAR_GROUPS = ("principal", "adaptation", "world_model", "throughput", "validation")
STEPS, RETURN = "throughput/env_steps", "principal/return"
# Begins the key of each validation score, which ends with K.
VALIDATION = "validation/score_k"
_SCORE = "score/"


@dataclass(frozen=True)
class Metric:
    """One number that is measured.

    Attributes:
        key: Flat name, the same wherever the number appears; `group/name` for a training scalar.
        unit: What one of it is; "1" for a pure number.
        meaning: What it says, in a phrase.
        falls: Of a training scalar, whether less of it is better, or it is a price: nothing for a search to maximise.
    """

    key: str
    unit: str
    meaning: str
    falls: bool = False


def validation_key(k: int) -> str:
    """Key of the normalised score on validation tasks after `k` support episodes."""
    return f"{VALIDATION}{k}"


def is_validation(key: str) -> bool:
    """Whether a key is that of a validation score, at whatever K."""
    return key.startswith(VALIDATION)


def score_key(condition: str, k: int) -> str:
    """Key of a trained principal's final normalised score (unit 1) in a condition, after `k` support episodes.

    Like all scores the interquartile mean over tasks.
    """
    return f"{_SCORE}{condition}_k{k}"


def is_score(key: str) -> bool:
    """Whether a key is that of a final score, in whatever condition and at whatever K."""
    return key.startswith(_SCORE)


def k_of(key: str) -> int:
    """K of a validation score's or a final score's key."""
    return int(key.rpartition("_k")[2])


def validation_metric(k: int) -> Metric:
    """The training scalar behind `validation_key(k)`; which K there are is set by `evaluation.k`."""
    return Metric(validation_key(k), "1", f"normalised score on validation tasks after {k} support episodes")


# What calibration error is, of arms (Guo et al., 2017) and of points, by the probability integral transform (PIT).
_CALIBRATION = (
    "mean gap between the likeliest arm's probability and how often it was pulled, in 15 bins of that probability; in "
    "the continuous game mean over p = 1/15, ..., 14/15 and coordinates of |share of PIT values below p - p|"
)
ROW_METRICS = (
    Metric("return", "principal reward per episode", "principal's undiscounted return on query episodes"),
    Metric("success_rate", "share of pulls", "pulls on the target arm in query episodes"),
    Metric("interventions", "per episode", "interventions other than none in query episodes"),
    Metric("horizon", "pulls", "pulls per episode of this game"),
    Metric("cost", "per episode", "what the interventions cost the principal, before the cost weight alpha"),
    Metric("agent_return", "agent reward per episode", "base means and incentives of the pulls in query episodes"),
    Metric("normalised_score", "1", "(return - never_return) / (oracle_return - never_return): 0 never, 1 oracle"),
    Metric("never_return", "principal reward per episode", "return on this task without any intervention"),
    Metric("oracle_return", "principal reward per episode", "return of the best privileged rule for this task"),
    Metric("support_return", "principal reward per episode", "return while adapting: what learning of the agent cost"),
    Metric("planned", "1", "1 if a rule took the policy's place in the query (evaluation.planning), 0 if not"),
    Metric("wm_nll_before", "nats per pull", "world model's loss on the next pull before adaptation"),
    Metric("wm_nll_after", "nats per pull", "world model's loss on the next pull after adaptation"),
    Metric("wm_accuracy_before", "share of pulls", "pulls that were the likeliest arm before adaptation"),
    Metric("wm_accuracy_after", "share of pulls", "pulls that were the likeliest arm after adaptation"),
    Metric("wm_ece_before", "1", f"calibration error of the world model before adaptation: {_CALIBRATION}"),
    Metric("wm_ece_after", "1", f"calibration error of the world model after adaptation: {_CALIBRATION}"),
    Metric("wm_nll_uniform", "nats per pull", "floor: loss of the uniform prediction"),
    Metric("wm_nll_frequency", "nats per pull", "floor: loss of predicting the agent's own running frequencies"),
    Metric("wm_accuracy_frequency", "share of pulls", "floor: pulls of the arm that the agent had pulled most often"),
)

SCALARS = (
    Metric(RETURN, "principal reward per episode", "undiscounted return on query episodes"),
    Metric("principal/success_rate", "share of pulls", "pulls on the target arm in query episodes"),
    Metric("principal/interventions", "per episode", "interventions other than none in query episodes", falls=True),
    Metric("principal/cost", "per episode", "what the interventions cost, before the cost weight alpha", falls=True),
    Metric("principal/entropy", "nats per pull", "entropy of the intervention policy"),
    Metric("principal/value_loss", "1", "squared error of the value baseline, in units of the value scale", falls=True),
    Metric("principal/grad_norm", "1", "norm of the meta-gradient before clipping"),
    Metric("principal/meta_lr", "1", "meta (outer) learning rate"),
    Metric("adaptation/support_return", "principal reward per episode", "return on support episodes, before adapting"),
    Metric("adaptation/gain", "principal reward per episode", "query return minus support return"),
    Metric("adaptation/inner_grad_norm", "1", "norm of the inner gradient, mean over tasks"),
    Metric("adaptation/inner_lr", "1", "inner learning rate, mean over parameter tensors"),
    Metric(
        "world_model/nll_before", "nats per pull", "next-pull loss on support episodes, before adaptation", falls=True
    ),
    Metric("world_model/nll_after", "nats per pull", "next-pull loss on query episodes, after adaptation", falls=True),
    Metric("world_model/accuracy", "share of pulls", "pulls that were the likeliest arm, after adaptation"),
    Metric(STEPS, "env steps", "environment steps so far, support and query together"),
    Metric("throughput/env_steps_per_s", "env steps per second", "environment steps per wall-clock second"),
    Metric("throughput/sample_s", "seconds per iteration", "sampling and inner adaptation", falls=True),
    Metric("throughput/update_s", "seconds per iteration", "meta-gradient and optimiser step", falls=True),
    Metric("throughput/bytes_per_env_step", "bytes", "trajectory bytes shipped per environment step", falls=True),
    validation_metric(0),
    validation_metric(1),
)

METRICS: dict[str, Metric] = {metric.key: metric for metric in ROW_METRICS + SCALARS}
