"""Object stores, log objects, manifests, segments, the partition log."""
