"""What a person sees: grids, the live screen, lines, tables, the report.

Pure functions of what `jobs` knows, but for `live`, which owns the terminal.
"""
