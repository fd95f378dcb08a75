"""The trainer and the engine behind two protocols, and the runtime that opens both.

The only room that trains adapters and samples. Knows nothing of jobs.
"""
