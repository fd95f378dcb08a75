"""`python -m arcd`: the same as the command `arcd`."""

from arcd.cli import main

main()
