"""One task, from lessons to verdict.

Knows the trainer and the engine by their protocols only; knows nothing of other tasks.
"""
