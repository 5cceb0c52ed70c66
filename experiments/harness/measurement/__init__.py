"""What is measured of networks: accuracies, alignment with manifolds, attributions, with and without retraining."""
