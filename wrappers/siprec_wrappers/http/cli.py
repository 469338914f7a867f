"""`whisper-http`: the CLI contract over a speech server's HTTP API.

Speaks whisper-asr-webservice (`asr`), OpenAI's audio API and what is compatible with it (`openai`),
and whisper.cpp's server (`cpp`).
"""

import queue
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from siprec_wrappers.contract import Arguments, write_outputs
from siprec_wrappers.http.exchange import ask
from siprec_wrappers.http.options import OWN, PROGRAM, Options, options_of
from siprec_wrappers.http.results import Recognised
from siprec_wrappers.service import Failed, run


def main(argv: Sequence[str] | None = None) -> int:
    """Transcribe the files and return the exit code, see `service.run`."""
    return run(PROGRAM, __doc__ or "", OWN, argv, read=options_of, work=transcribe)


def transcribe(arguments: Arguments, options: Options) -> None:
    """Send every file, some at a time, and write each result as it comes.

    Raises Failed with the first failure; what is under way then is given up.
    """
    deadline = time.monotonic() + options.timeout
    waiting: queue.SimpleQueue[Path] = queue.SimpleQueue()
    results: queue.SimpleQueue[tuple[Path, Recognised | Exception]] = queue.SimpleQueue()
    for audio in arguments.audio:
        waiting.put(audio)

    def work() -> None:
        while True:
            try:
                audio = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                outcome: Recognised | Exception = ask(audio, arguments, options, deadline)
            except Exception as error:  # noqa: BLE001  it is raised again, where it is waited for
                outcome = error
            results.put((audio, outcome))

    # Threads of this kind never keep the program: what hangs in a server's slow answer, however
    # slowly it drips, ends with it.
    for _ in range(min(options.parallel, len(arguments.audio))):
        threading.Thread(target=work, daemon=True).start()
    for _ in arguments.audio:
        try:
            audio, outcome = results.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise Failed(f"{options.target}: no result within {options.timeout:g} s") from None
        if isinstance(outcome, Failed):
            raise type(outcome)(f"{audio.name}: {outcome}")
        if isinstance(outcome, Exception):
            raise outcome
        model = arguments.model if options.api == "openai" else None  # others choose themselves
        write_outputs(
            arguments, audio, outcome.segments, language=outcome.language,
            model=outcome.model or model,
        )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
