"""`python -m imsync`."""

from imsync.cli import main

main()
