"""Images to WebDataset shards, and shards to an exact, elastic stream of samples."""
