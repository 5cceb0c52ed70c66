"""The paper's experiments, one absl program each; run as `python -m experiments.NAME`."""
