"""`python -m datacomp_flyt.cli`, for where the console script is not on the path."""

from datacomp_flyt.cli import main

main()
