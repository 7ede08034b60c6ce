"""``python -m envkit.cli``."""

from envkit.cli.main import main

if __name__ == "__main__":
    main()
