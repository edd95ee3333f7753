"""How long a report over a large sweep takes, in CPU seconds of one process, and its peak memory.

    python -m benchmarks.report        (1,000 training runs x 200 tasks x 2 conditions x 2 K, 20 M rows of profiles)

The target is under 60 s and 2 GB.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.append(str(Path(__file__).parent.parent / "tests"))

from sweep_folders import METHODS, Effects, profile_frames, write_sweep

SETTINGS, SEEDS, TASKS, ITERATIONS = 50, 10, 200, 400
SECONDS, MEGABYTES = 60, 2000


def make(folder: Path) -> None:
    """A sweep over two methods, five numbers of arms and ten learning rates; profiles of one of them.

    Beyond 30 M rows of profiles a sweep leaves them with its runs, where fewer are read.
    """
    search = {"environment.num_arms": [2, 5, 10, 20, 50], "training.meta_lr": np.logspace(-4, -2, 10).tolist()}
    assert len(search["environment.num_arms"]) * len(search["training.meta_lr"]) == SETTINGS
    slopes = {"environment.num_arms": -0.03, "training.meta_lr": 0.005}
    methods = {"mermaide": Effects(per_setting=slopes), "rl2": METHODS["rl2"]}
    answer = {"compare": "method", "value": "mermaide", "against": ["rl2"]}
    options = {"seeds": SEEDS, "tasks": TASKS, "iterations": ITERATIONS, "game": ["environment.num_arms"]}
    write_sweep(folder, methods, search, answer=answer, profiles=False, **options)
    writer = None
    for frame in profile_frames(methods, search, seeds=SEEDS, tasks=TASKS, settings=SETTINGS):
        table = pa.Table.from_pandas(frame, preserve_index=False)
        writer = writer or pq.ParquetWriter(folder / "profiles.parquet", table.schema)
        writer.write_table(table, row_group_size=2**20)
    assert writer is not None
    writer.close()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        sweep = Path(folder) / "sweep"
        make(sweep)
        counted = [f"{pq.read_metadata(sweep / f'{name}.parquet').num_rows:,} {name}" for name in ("rows", "profiles")]
        print(f"{2 * SETTINGS * SEEDS:,} training runs, {TASKS} tasks per condition: {', '.join(counted)}")
        command = [sys.executable, "-m", "mermaide_ray", "report", str(sweep)]
        started = time.monotonic()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "ARROW_NUM_THREADS": "1"}
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
        wall, used = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        page = (sweep / "report" / "report.html").stat().st_size / 1e6
    seconds, megabytes = used.ru_utime + used.ru_stime, used.ru_maxrss / 1024
    print(f"{seconds:.1f} CPU s ({wall:.1f} s on the clock), {megabytes:.0f} MB at most, page of {page:.1f} MB")
    print(f"target: {SECONDS} s, {MEGABYTES} MB: {'met' if seconds < SECONDS and megabytes < MEGABYTES else 'MISSED'}")


if __name__ == "__main__":
    main()
