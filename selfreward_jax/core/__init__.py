"""Rows, tokens, stores, configuration and meshes: what every other package stands on."""
