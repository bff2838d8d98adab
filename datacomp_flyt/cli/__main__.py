"""Runs `python -m datacomp_flyt.cli`, which is the command `datacomp-flyt`."""

from datacomp_flyt.cli import main

main()
