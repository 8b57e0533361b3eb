"""Kafscale: a Kafka-protocol broker, one worker process per core, the log in object storage."""

__version__ = "0.1.0"
