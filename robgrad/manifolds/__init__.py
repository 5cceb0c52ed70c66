"""Estimates of the image manifold, each by `project` and `tangent_space` of one image, and what makes them."""

from robgrad.manifolds import generators
from robgrad.manifolds.generators import VaeGan, vae_gan_for
from robgrad.manifolds.geometry import Manifold, TangentSpace, autoencoder, column_space, decoder_jacobian, distance
from robgrad.manifolds.kinds import KINDS, Fitting, Kind
from robgrad.manifolds.moves import off_manifold, on_manifold
from robgrad.manifolds.pca import Plane, fit_pca, pca
from robgrad.manifolds.renderer import Bank, nearest_code, renderer
from robgrad.manifolds.vae_gan import VaeGanSizes, from_vae_gan, init_vae_gan, vae_gan_step

__all__ = [
    "KINDS",
    "Bank",
    "Fitting",
    "Kind",
    "Manifold",
    "Plane",
    "TangentSpace",
    "VaeGan",
    "VaeGanSizes",
    "autoencoder",
    "column_space",
    "decoder_jacobian",
    "distance",
    "fit_pca",
    "from_vae_gan",
    "generators",
    "init_vae_gan",
    "nearest_code",
    "off_manifold",
    "on_manifold",
    "pca",
    "renderer",
    "vae_gan_for",
    "vae_gan_step",
]
