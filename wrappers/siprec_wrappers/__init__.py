"""Executables that keep the whisper CLI contract. They need nothing of the bridge."""
