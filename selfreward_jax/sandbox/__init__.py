"""A small made world in which every answer's true score is known, to see what self-rewarding does and does not do."""
