"""What evaluations come to, as pages and tables."""
