"""Run the command line with `python -m geograft`."""

from geograft.cli import main

main()
