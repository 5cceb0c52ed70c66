"""Programs, one a file; what they share is in `harness`, what they recorded in `results`."""
