"""What a person sees: grids, the live screen, lines, tables, the report.

Pure functions from values to text and pages, except for `live`, which draws on the terminal. Knows
nothing of trainers, engines or the daemon.
"""
