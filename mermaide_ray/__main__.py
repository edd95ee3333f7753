"""`python -m mermaide_ray` is `mermaide`."""

from mermaide_ray.cli import run

run()
