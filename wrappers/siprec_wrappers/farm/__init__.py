"""A farm of recognisers behind a RabbitMQ: `whisper-farm` keeps the CLI contract and shares its work.

Audio and results go through a store, messages only name them; the JSON in the store is the truth.
"""
