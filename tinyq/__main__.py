"""``python -m tinyq``."""

from tinyq.cli import main

main()
