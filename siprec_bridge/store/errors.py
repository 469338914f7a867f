"""What the store raises."""


class StoreError(Exception):
    """The database refused (disk full, locked, gone, constraint): nothing was stored."""
