"""Sweeps: one YAML, one scientific question, many training runs.

In data-flow order: `file.py` what the user writes; `plan.py` the trials that follow from it; `checks.py` what is
refused before anything is trained; `store.py` where results live; `status.py` what is on record of each run; `adopt.py`
principals that other sweeps have trained; `run.py` one training run of a sweep, from its settings to its rows;
`tuning.py` Tune, which schedules trials (the only importer of `ray.tune`); `panel.py` what a person sees meanwhile;
`results.py` the files of all runs as one set of tables; `job.py` all of it behind `mermaide sweep`.
Importing this package imports neither Ray nor Torch.
"""
