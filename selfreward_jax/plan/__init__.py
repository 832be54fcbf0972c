"""What a run would need and take on a machine that need not be here, from compiled programs."""
