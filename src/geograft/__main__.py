"""`python -m geograft` is `geograft`."""

from geograft.cli import main

main()
