"""What arcd needs of the machine: files, the home folder and its lock, processes, ledger, seeds.

Knows nothing of ARC, models or jobs.
"""
