"""`python -m pmg`, where the `pmg` command is not on the path."""

from pmg.cli import main

main()
