"""Estimates of the image manifold, each by `project` and `tangent_space` of one image, and what makes them."""

from robgrad.manifolds import generators
from robgrad.manifolds.denoiser import Denoiser, DenoiserSizes, denoiser_step, from_denoiser, init_denoiser
from robgrad.manifolds.eigen import leading_directions
from robgrad.manifolds.generators import VaeGan, vae_gan_for
from robgrad.manifolds.geometry import Manifold, TangentSpace, autoencoder, column_space, decoder_jacobian, distance
from robgrad.manifolds.kinds import KINDS, Fitting, Kind, Setting
from robgrad.manifolds.moves import off_manifold, on_manifold
from robgrad.manifolds.neighbours import local_pca
from robgrad.manifolds.pca import Plane, fit_pca, pca
from robgrad.manifolds.renderer import Bank, nearest_code, renderer
from robgrad.manifolds.vae_gan import VaeGanSizes, from_vae_gan, init_vae_gan, vae_gan_step

__all__ = [
    "KINDS",
    "Bank",
    "Denoiser",
    "DenoiserSizes",
    "Fitting",
    "Kind",
    "Manifold",
    "Plane",
    "Setting",
    "TangentSpace",
    "VaeGan",
    "VaeGanSizes",
    "autoencoder",
    "column_space",
    "decoder_jacobian",
    "denoiser_step",
    "distance",
    "fit_pca",
    "from_denoiser",
    "from_vae_gan",
    "generators",
    "init_denoiser",
    "init_vae_gan",
    "leading_directions",
    "local_pca",
    "nearest_code",
    "off_manifold",
    "on_manifold",
    "pca",
    "renderer",
    "vae_gan_for",
    "vae_gan_step",
]
