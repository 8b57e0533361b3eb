"""A worker: one process, one Kafka node, the data plane."""
