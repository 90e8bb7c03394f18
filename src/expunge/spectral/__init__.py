"""Layers as linear maps: their largest singular values, and what keeps them small."""

from .alternatives import GradientClip, Rescale, SpectralNorm
from .clip import Clip
from .control import SpectralControl
from .fourier import FFTClip, GramRescale

# A new control of spectral norms is one file and one line here.
CONTROLS: dict[str, type[SpectralControl]] = {
    "clip": Clip,
    "fft_clip": FFTClip,
    "gradient_clip": GradientClip,
    "gram_rescale": GramRescale,
    "rescale": Rescale,
    "spectral_norm": SpectralNorm,
}
