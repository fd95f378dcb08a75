"""One task, from lessons to verdict. Read `solve` first.

Knows the trainer and the engine by their protocols only; knows nothing of other tasks.
"""
