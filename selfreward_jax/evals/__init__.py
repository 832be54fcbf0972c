"""Instruments: how good a model answers and judges. The algorithm knows nothing of them."""
