"""Sweeps: one YAML, one scientific question, many training runs.

In data-flow order: `sections.py` what the user writes, `file.py` how it is read; `plan.py` the trials that follow from
it; `checks.py` what is refused before anything is trained; `store.py` where results live; `status.py` what is on
record of each run; `adopt.py` principals that other sweeps have trained; `run.py` one training run of a sweep, from
its settings to its rows; `trainable.py` a trial as Ray Tune runs it, `search.py` how Tune chooses trials, `tuning.py`
the whole sweep under Tune (no other module imports it); `panel.py` what a person sees meanwhile; `results.py` the
files of all runs as one set of tables; `job.py` all of it behind `mermaide sweep`.
Importing this package imports neither Ray nor Torch.
"""
