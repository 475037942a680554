"""A trained model as its user holds it: found in a run, a folder or a registry, put on a device, asked for images."""
