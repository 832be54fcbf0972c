"""One file per seam of the algorithm: prompt creation, judging, pair building."""
