"""Adversarial robustness and gradient interpretability in JAX.

Modules, each importing only from those before it: `datasets`, `layers`, `losses`, `models`, `attacks`,
`stacking`, `training`, `checkpoints`, `vae_gan`, `manifold`, `alignment`, `report`.
"""
