"""Several nodes: joining a cluster, and what must hold before work starts there.

Versions agree, resources can be had, storage is shared: each check ends in one sentence before anything is computed,
not in a traceback an hour later.
"""
