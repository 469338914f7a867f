"""Sends audio files as G.711 to two ports: `send_g711.py LEFT.wav RIGHT.wav PORT PORT DONE`."""

import sys
from pathlib import Path

from harness.rtp import packets, read_wav, send


def main() -> None:
    """Send each file to its port, then write the file DONE."""
    left, right, left_port, right_port, done = sys.argv[1:]
    for index, (path, port) in enumerate(((left, left_port), (right, right_port))):
        _, pcm = read_wav(Path(path))
        send(packets(pcm, codec="PCMA", ssrc=index + 1), int(port))
    Path(done).touch()


if __name__ == "__main__":
    main()
