"""Configurations: `base` has every field; the others change what differs."""
