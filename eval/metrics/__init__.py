"""From images to numbers: feature networks, statistics, distances and scores."""
