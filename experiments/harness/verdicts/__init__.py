"""Claims and their verdicts by one rule, correlations, and what a run of a size can tell."""
