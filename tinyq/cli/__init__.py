"""The command line: one file for each verb. Nothing heavy is imported before a verb runs."""

from tinyq.cli.app import app, main

__all__ = ["app", "main"]
