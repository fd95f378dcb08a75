"""`python -m arcd`: the same as the command `arcd`."""

from arcd.cli.main import main

main()
