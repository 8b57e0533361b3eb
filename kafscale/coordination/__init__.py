"""Cluster state, assignment, catalogue, the coordination store, groups."""
