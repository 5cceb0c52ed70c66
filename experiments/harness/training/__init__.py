"""The networks and manifolds of a run, trained, kept and continued: stages, ways to train, guidance, retrainings."""
