"""Labelled images as plain arrays: scikit-learn's digits, TFDS sets read without TensorFlow, files, a 2-D toy.

A data set here is two pairs of arrays that fit on the device: unsigned bytes `[N, H, W, C]` and integer
labels `[N]`. Everything downstream works in the pixel range [-1, 1] of the paper, and `scale` is the only
place that knows it.
"""

from robgrad.data import corruptions, marks
from robgrad.data.checks import check
from robgrad.data.images import PIXEL_RANGE, DataError, Dataset, Split, Truth, scale
from robgrad.data.sources import EMBEDDED, is_file, is_folder, load
from robgrad.data.toy import two_gaussians

__all__ = [
    "EMBEDDED",
    "PIXEL_RANGE",
    "DataError",
    "Dataset",
    "Split",
    "Truth",
    "check",
    "corruptions",
    "is_file",
    "is_folder",
    "load",
    "marks",
    "scale",
    "two_gaussians",
]
