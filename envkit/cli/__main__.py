"""``python -m envkit.cli``."""

from envkit.cli.main import main

main()
