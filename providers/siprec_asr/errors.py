"""What a client is told when it does not get a transcript."""


class Refused(Exception):
    """A request that is not answered with a transcript, and why.

    `status` is HTTP's; the other fronts send `code`. `retry_after` in seconds, when another try
    makes sense.
    """

    def __init__(
        self, status: int, code: str, message: str, *, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.retry_after = retry_after


class ConfigurationError(Exception):
    """A setting that the operator must mend; the message names it."""


class Cancelled(Exception):
    """Nobody waits for this transcript any more. Raised in worker threads."""
