"""What the programs share: options and flags, configurations, stages of training, claims, figures and pages."""
