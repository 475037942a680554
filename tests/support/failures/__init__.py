"""Processes that die, stall or are interrupted, and disks that are full."""
