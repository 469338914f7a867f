"""The commands. Each reads the settings, builds what it needs, prints, and exits with a code.

0: done; 1: it did not work; 2: a setting or an argument is wrong.
"""

from siprec_bridge.cli.commands import app, main

__all__ = ["app", "main"]
