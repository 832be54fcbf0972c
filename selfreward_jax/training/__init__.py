"""Losses, steps and the loop that SFT and DPO share."""
