"""An image autoencoder over lists of images of mixed sizes.

Shape suffixes: B images of one size, C channels, H and W height and width.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from mmkit.nn.convolution import ConvDecoder, ConvEncoder, Pyramid, image_grid
from mmkit.nn.grouping import map_by_shape


def start(layer: nn.Module) -> None:
    """Initial weights that keep a signal's variance, and no biases (LeCun et al. 1998).

    torch's default shrinks the signal by a factor of 1.7 per layer beside biases of its own size, so that deep inside every
    image looks alike: with it, a small autoencoder on two-colour images stays at three times the error (600 steps).
    """
    if isinstance(layer, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
        nn.init.zeros_(layer.bias)


class Autoencoder(nn.Module):
    """Canonical images to channel-last maps and back, with a layer on either side of what stands in between.

    `wide` is the encoder's number of channels and the decoder's (they differ where a Gaussian's two moments leave the
    encoder and one sample enters the decoder); `inward` and `outward` map them to the latents and back.
    """

    def __init__(self, pyramid: Pyramid, wide: tuple[int, int], inward: nn.Module, outward: nn.Module) -> None:
        super().__init__()
        self.stride = pyramid.stride
        self.encoder = ConvEncoder(pyramid, wide[0])
        self.inward = inward
        self.outward = outward
        self.decoder = ConvDecoder(pyramid, wide[1])
        self.apply(start)

    @property
    def last_weight(self) -> nn.Parameter:
        """The last weight on the way to the pixels: where adaptive loss weights compare gradients."""
        return self.decoder.leave.weight

    def encode(self, contents: Sequence[Tensor], place: str) -> list[Tensor]:
        """Images ``[3, H, W]`` in [0, 1], of any mix of sizes, to ``[H/stride, W/stride, C]``.

        They are brought to the device and precision of the weights. Raises `ContractError` at `place` on a size that
        does not divide.
        """
        for content in contents:
            image_grid(tuple(content.shape[-2:]), self.stride, place)
        return map_by_shape(contents, self._encode)

    def decode(self, latents: Sequence[Tensor]) -> list[Tensor]:
        """``[H/stride, W/stride, C]`` to float32 images ``[3, H, W]`` around [0, 1], not clamped."""
        return map_by_shape(latents, self._decode)

    def _encode(self, x_BCHW: Tensor) -> Tensor:
        weight = self.encoder.enter.weight
        return self.inward(self.encoder(x_BCHW.to(weight) * 2 - 1)).permute(0, 2, 3, 1)

    def _decode(self, z_BHWC: Tensor) -> Tensor:
        weight = self.decoder.enter.weight
        y_BCHW = self.decoder(self.outward(z_BHWC.to(weight).permute(0, 3, 1, 2)))
        return (y_BCHW.float() + 1) / 2
