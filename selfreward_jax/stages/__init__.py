"""One file per arrow of the paper's figure: rows in, rows out, resumable."""
