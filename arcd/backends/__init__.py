"""The trainer and the engine behind two protocols, and the runtime that opens and closes both.

The only room that trains adapters and samples with them. Knows nothing of jobs.
"""
