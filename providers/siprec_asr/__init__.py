"""`siprec-asr`: a server that keeps Whisper models loaded and is asked in four ways.

`transcriber` is the heart: audio in, a queue, a model from the cache, a transcript out. The fronts
(`resident`, `openai`, `websocket`, `wyoming`) translate to it and know nothing of models. Runs
without the bridge. See docs/asr.md.
"""

__version__ = "0.1.0"
