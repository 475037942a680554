"""One update of the weights over all workers."""
