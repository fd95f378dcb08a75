"""ARC-AGI itself: grids, tasks, views of them, the choice among candidates, metrics, submissions.

Pure values and functions; the only files read are task and submission files. Knows nothing of
tokens, models or jobs.
"""
