"""Training and measuring the planned runs: continued where they were interrupted, never twice."""
