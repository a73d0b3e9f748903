"""A patch discriminator and its losses.

Isola et al. 2017 (arXiv 1611.07004), with the hinge loss and the adaptive weight of VQGAN (Esser et al. 2021, arXiv
2012.09841). Group norm stands where they have batch norm, so that what is said of an image does not depend on the others
of its batch, nor on how it is sharded.

Shape suffixes: B batch, H and W height and width, h and w patches.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmkit.nn.convolution import group_norm, norm_groups


class PatchDiscriminator(nn.Module):
    """One logit per overlapping patch: high where it looks real.

    `layers` strided convolutions (each halves the grid) with widths `base_dim`, twice, four, at most eight times that, then
    one more and the logits; three layers see patches of 70 x 70 pixels. Weights start at N(0, 0.02).
    """

    def __init__(self, base_dim: int = 64, layers: int = 3) -> None:
        super().__init__()
        modules: list[nn.Module] = [nn.Conv2d(3, base_dim, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        before = base_dim
        for layer in range(1, layers + 1):
            after = base_dim * min(2**layer, 8)
            stride = 2 if layer < layers else 1
            modules.append(nn.Conv2d(before, after, 4, stride=stride, padding=1, bias=False))
            modules += [group_norm(norm_groups(after), after), nn.LeakyReLU(0.2)]
            before = after
        modules.append(nn.Conv2d(before, 1, 4, padding=1))
        self.layers = nn.Sequential(*modules)
        for module in modules:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Images in [0, 1] to logits ``[B, h, w]``; at least 24 pixels a side with three layers."""
        return self.layers(images_B3HW * 2 - 1).squeeze(1)


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss on its logits for real and for reconstructed images: a scalar."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def hinge_generator(fake: Tensor) -> Tensor:
    """What the autoencoder minimises on the logits of its reconstructions: a scalar."""
    return -fake.mean()


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_weight: Tensor, limit: float = 1e4) -> Tensor:
    """How much the adversarial loss must weigh to pull `last_weight` as hard as the reconstruction loss does.

    The quotient of the two gradients' norms, at most `limit`: a scalar without gradient. Both losses keep their graphs.
    """
    (pull,) = torch.autograd.grad(reconstruction, last_weight, retain_graph=True)
    (push,) = torch.autograd.grad(adversarial, last_weight, retain_graph=True)
    return (pull.norm() / (push.norm() + 1e-4)).clamp(max=limit).detach()
