"""What robgrad costs against what one would use instead: `python -m experiments.benchmark`."""
