"""What arcd needs of the machine: files, the home folder and its lock, processes, time, seeds.

Knows nothing of ARC, models or jobs.
"""
