"""Packed data sets: the manifest, shards, and reading them from wherever they lie."""
