"""Which task comes next, with how many steps and samples, and how long it will take.

Knows nothing of HTTP, processes or models.
"""
