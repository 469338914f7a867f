"""A service to test against, that really hears: with the stand-in that ships with the bridge."""

import json
import tempfile
import threading
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from pocketsphinx import Decoder

from siprec_wrappers.standin import read_audio, recognise, speech

_ONE_AT_A_TIME = threading.Lock()


@contextmanager
def service() -> Iterator[str]:
    """Yields its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/hear"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        wav = self.rfile.read(int(self.headers["Content-Length"]))
        try:
            with _ONE_AT_A_TIME:
                segments = _hear(wav)
        except (wave.Error, EOFError, ValueError) as error:
            self._answer(422, {"error": str(error)})
            return
        self._answer(200, {"language": "en", "segments": segments})

    def _answer(self, status: int, value: object) -> None:
        body = json.dumps(value).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:  # a client that was cancelled
            self.close_connection = True

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


@cache  # the checks send the same audio again and again
def _hear(wav: bytes) -> list[dict[str, object]]:
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        file.write(wav)
        file.flush()
        pcm = read_audio(Path(file.name))
    decoder = Decoder(loglevel="FATAL")
    heard = [recognise(decoder, pcm, start, end) for start, end in speech(pcm)]
    return [
        {"start": one.start, "end": one.end, "text": one.text} for one in heard if one is not None
    ]
