"""Generation and scoring: jitted programs and their host loops."""
