"""The smallest config of each autoencoder that is wrapped, and contents that each takes."""

from __future__ import annotations

import torch
from torch import Tensor

FOUR = {"norm_num_groups": 4}
TWO_LEVELS = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
KL = {"_class_name": "AutoencoderKL", "block_out_channels": [8, 16], **TWO_LEVELS, **FOUR}
VQ = {"_class_name": "VQModel", "block_out_channels": [8, 16], "num_vq_embeddings": 32, **TWO_LEVELS, **FOUR}

IMAGES = {
    "kl": {**KL, "scaling_factor": 0.18215},
    "sd3": {
        **KL, "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False, "scaling_factor": 1.5305,
        "shift_factor": 0.0609,
    },
    "dc": {
        "_class_name": "AutoencoderDC", "latent_channels": 4, "scaling_factor": 0.41407,
        "encoder_block_types": ["ResBlock", "EfficientViTBlock"], "decoder_block_types": ["ResBlock", "EfficientViTBlock"],
        "encoder_block_out_channels": [8, 16], "decoder_block_out_channels": [8, 16], "encoder_layers_per_block": [1, 1],
        "decoder_layers_per_block": [1, 1], "attention_head_dim": 8, "encoder_qkv_multiscales": [[], [5]],
        "decoder_qkv_multiscales": [[], [5]], "decoder_norm_types": "rms_norm", "decoder_act_fns": "silu",
    },
    "tiny": {
        "_class_name": "AutoencoderTiny", "encoder_block_out_channels": [8, 8], "decoder_block_out_channels": [8, 8],
        "num_encoder_blocks": [1, 1], "num_decoder_blocks": [1, 1], "scaling_factor": 1.0,
    },
}  # fmt: skip
VIDEOS = {
    "wan": {
        "_class_name": "AutoencoderKLWan", "base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 1], "num_res_blocks": 1,
        "temperal_downsample": [False, True], "latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [2.0, 1.5, 3.0, 1.0],
    },
    "qwen_image": {
        "_class_name": "AutoencoderKLQwenImage", "base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 1], "num_res_blocks": 1,
        "temperal_downsample": [False, True], "latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [2.0, 1.5, 3.0, 1.0],
    },
    "cogvideox": {
        "_class_name": "AutoencoderKLCogVideoX", "block_out_channels": [8, 8, 8], "latent_channels": 4, "layers_per_block": 1,
        "down_block_types": ["CogVideoXDownBlock3D"] * 3, "up_block_types": ["CogVideoXUpBlock3D"] * 3,
        "temporal_compression_ratio": 4, **FOUR, "scaling_factor": 0.7,
    },
    "hunyuan": {
        "_class_name": "AutoencoderKLHunyuanVideo", "block_out_channels": [8, 8, 8, 8], "latent_channels": 4,
        "layers_per_block": 1, "mid_block_add_attention": False, **FOUR, "scaling_factor": 0.476986,
    },
    "mochi": {
        "_class_name": "AutoencoderKLMochi", "encoder_block_out_channels": [32, 32, 32, 32], "latent_channels": 4,
        "decoder_block_out_channels": [32, 32, 32, 32], "layers_per_block": [1, 1, 1, 1, 1],
        "add_attention_block": [False, False, False, False, False], "latents_mean": [0.1, -0.2, 0.3, 0.0],
        "latents_std": [2.0, 1.5, 3.0, 1.0], "scaling_factor": 1.5,
    },
    "ltx": {
        "_class_name": "AutoencoderKLLTXVideo", "latent_channels": 8, "block_out_channels": [8, 8, 8, 8],
        "decoder_block_out_channels": [8, 8, 8, 8], "layers_per_block": [1, 1, 1, 1, 1],
        "decoder_layers_per_block": [1, 1, 1, 1, 1], "spatio_temporal_scaling": [True, True, True, False],
        "decoder_spatio_temporal_scaling": [True, True, True, False], "patch_size": 4, "scaling_factor": 0.5,
    },
}  # fmt: skip
SIZES = {
    "kl": (16, 24), "sd3": (16, 24), "dc": (16, 24), "tiny": (16, 24), "wan": (5, 16, 8), "qwen_image": (1, 16, 8),
    "cogvideox": (9, 16, 16),
    "hunyuan": (5, 16, 16), "mochi": (7, 16, 16), "ltx": (9, 32, 64),
}  # fmt: skip


def content(name: str, seed: int = 0) -> Tensor:
    """An image ``[3, H, W]`` or a video ``[F, 3, H, W]`` in [0, 1] of the family's size."""
    *frames, height, width = SIZES[name]
    return torch.rand(*frames, 3, height, width, generator=torch.Generator().manual_seed(seed))
