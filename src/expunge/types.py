"""Shapes of tensors by name. N samples, K classes, M models, C channels, H × W pixels."""

from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

Images = Float[Tensor, "N C H W"]  # float32 in [0, 1]
Labels = Int64[Tensor, " N"]
Logits = Float[Tensor, "N K"]
Scores = Float[Tensor, " N"]  # higher = more likely a member
ShadowScores = Float[Tensor, "M N"]
Included = Bool[Tensor, "M N"]
Pixels = Shaped[Tensor, "N C H W"]  # uint8, or float32 in [0, 1]

__all__ = ["Images", "Included", "Labels", "Logits", "Pixels", "Scores", "ShadowScores"]
