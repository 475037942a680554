"""The evaluation service's web page."""
