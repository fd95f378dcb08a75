"""ARC-AGI itself: grids, tasks, views of them, the choice among candidates, metrics, submissions.

Pure values and functions; the only files opened are those of tasks and submissions. Knows nothing
of tokens, models or jobs.
"""
