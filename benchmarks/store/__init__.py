"""The store beside raw I/O and the best public caches, as ratios measured in one run."""
