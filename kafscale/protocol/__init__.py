"""bytes ↔ typed messages: Kafka wire codecs and record batches. No I/O."""
