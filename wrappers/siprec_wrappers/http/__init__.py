"""`whisper-http`, the wrapper of speech servers that speak HTTP."""
