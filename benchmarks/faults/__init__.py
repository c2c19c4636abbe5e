"""Fault scripts: they break what a store stands on, and count what it lost, mixed up or did not name."""
