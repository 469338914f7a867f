"""`whisper-standin`: the CLI contract over pocketsphinx, for machines without Whisper.

It knows English and little of it; what it writes says in `model` what it is.
"""

import sys
import wave
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soxr
from pocketsphinx import Decoder

from siprec_wrappers.contract import (
    Failure,
    Segment,
    Word,
    check_audio,
    parse_arguments,
    write_outputs,
)

MODEL = "pocketsphinx-en-us, not Whisper"
_RATE = 16000
_FRAME_S = 0.01
_BLOCK = _RATE // 50  # 20 ms: what loudness is measured over
_GAP_S = 0.7  # silence that ends a segment
_PAD_S = 0.25
_QUIETEST = 60.0  # of 32768: below it nothing is speech, however quiet the rest is
_LONGEST_S = 30.0
_EPILOG = """\
Further options of openai-whisper are accepted, and not heeded.

exit codes: 1 when a file cannot be read or written; 2 for wrong arguments.
"""

Pcm = npt.NDArray[np.int16]


def main(argv: Sequence[str] | None = None) -> int:
    """Transcribe the files; exit code 0, 1 when one cannot be read or written, 2 for wrong arguments."""
    arguments = parse_arguments("whisper-standin", (__doc__ or "").strip(), argv, epilog=_EPILOG)
    if arguments.ignored:
        print(f"whisper-standin: ignored: {' '.join(arguments.ignored)}", file=sys.stderr)
    decoder = Decoder(loglevel="FATAL")
    try:
        check_audio(arguments.audio)
        for audio in arguments.audio:
            pcm = read_audio(audio)
            segments = [
                segment
                for start, end in speech(pcm)
                if (segment := recognise(decoder, pcm, start, end)) is not None
            ]
            write_outputs(arguments, audio, segments, language="en", model=MODEL)
    except Failure as failure:
        print(f"whisper-standin: {failure}", file=sys.stderr)
        return failure.code
    except OSError as error:
        said = f"{error.filename}: {error.strerror}" if error.filename else error
        print(f"whisper-standin: {said}", file=sys.stderr)
        return 1
    return 0


def read_audio(path: Path) -> Pcm:
    """16-bit PCM WAV of any rate and channels as int16, shape (samples,), at 16 kHz.

    Raises OSError, and Failure for what is no such file.
    """
    try:
        with wave.open(str(path), "rb") as wav:
            rate, channels, octets = wav.getframerate(), wav.getnchannels(), wav.getsampwidth()
            frames = wav.readframes(wav.getnframes())
    except (EOFError, wave.Error) as error:
        raise Failure(f"{path}: no WAV file: {str(error) or 'it is cut off'}") from error
    if octets != 2:
        raise Failure(f"{path}: {8 * octets}-bit samples; only 16-bit PCM is read")
    pcm = np.frombuffer(frames[: len(frames) // (2 * channels) * 2 * channels], "<i2")
    mono = pcm.reshape(-1, channels).mean(axis=1).astype(np.int16) if channels > 1 else pcm
    if rate == _RATE or not len(mono):
        return mono.astype(np.int16)
    resampled: Pcm = soxr.resample(mono.astype(np.int16), rate, _RATE)
    return resampled


def speech(pcm: Pcm) -> Iterator[tuple[int, int]]:
    """Stretches of speech as sample positions: louder than the background, joined over gaps."""
    blocks = len(pcm) // _BLOCK
    if not blocks:
        return
    framed = pcm[: blocks * _BLOCK].reshape(blocks, _BLOCK).astype(np.float64)
    loudness = np.sqrt((framed**2).mean(axis=1))
    background = float(np.percentile(loudness, 10))
    loud = np.flatnonzero(loudness > max(_QUIETEST, 3 * background, 0.03 * float(loudness.max())))
    if not len(loud):
        return
    pad = round(_PAD_S * _RATE)
    longest = round(_LONGEST_S * _RATE)
    gaps = np.flatnonzero(np.diff(loud) * _BLOCK > _GAP_S * _RATE) + 1
    for run in np.split(loud, gaps):
        start = max(0, int(run[0]) * _BLOCK - pad)
        end = min(len(pcm), (int(run[-1]) + 1) * _BLOCK + pad)
        for piece in range(start, end, longest):
            yield piece, min(end, piece + longest)


def recognise(decoder: Decoder, pcm: Pcm, start: int, end: int) -> Segment | None:
    """The words between two positions, or None when there are none."""
    decoder.start_utt()
    decoder.process_raw(pcm[start:end].astype("<i2").tobytes(), full_utt=True)
    decoder.end_utt()
    logmath = decoder.logmath
    offset = start / _RATE
    words = [
        Word(
            text=one.word.partition("(")[0],  # "the(2)" is a way to pronounce "the"
            start=offset + one.start_frame * _FRAME_S,
            end=offset + (one.end_frame + 1) * _FRAME_S,
            probability=min(1.0, max(0.0, float(logmath.exp(one.prob)))),
        )
        for one in decoder.seg() or ()
        if one.word[0] not in "<[+"  # silence and noise
    ]
    if not words:
        return None
    text = " ".join(word.text for word in words)
    return Segment(text, words[0].start, words[-1].end, tuple(words))


if __name__ == "__main__":
    sys.exit(main())
