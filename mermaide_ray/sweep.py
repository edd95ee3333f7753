"""The only importer of Tune. Importing this module makes the algorithm known to Tune by name.

Example:
    >>> import mermaide_ray.sweep  # doctest: +SKIP
    >>> tuner = tune.Tuner("MERMAIDE", param_space=MermaideConfig().training(meta_lr=tune.grid_search([1e-3, 3e-3])))
"""

from __future__ import annotations

from ray.tune import register_trainable

from mermaide_ray.algorithm import Mermaide

NAME = "MERMAIDE"

register_trainable(NAME, Mermaide)
