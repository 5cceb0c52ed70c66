"""Adversarial robustness and gradient interpretability in JAX.

Modules, each importing only from those before it: `datasets`, `layers`, `losses`, `models`, `attacks`,
`stacking`, `runs`, `training`, `generative`, `vae_gan`, `manifold`, `attributions`, `alignment`,
`checkpoints`, `retraining`, `report`, `page`.
"""
