"""Stores behind a URL: the same files as objects, read through copies on this machine."""
