"""From a checkpoint to samples and their features."""
