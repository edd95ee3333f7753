"""The networks of the principal. Knows no agent and no game: what is trained can't name what it must generalise to."""
