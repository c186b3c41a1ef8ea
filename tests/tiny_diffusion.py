"""Stable Diffusion 1.5 in kind, with random parts of a few channels and a tokenizer of letters."""

import pytest
import torch

pytest.importorskip("diffusers")
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "skip_prk_steps": True}
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
END = len(WORDS) - 1


def tiny_stable_diffusion(prediction: str = "epsilon") -> StableDiffusionPipeline:
    """Images are eight times as wide as what the UNet denoises, as in Stable Diffusion."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": END - 1, "eos_token_id": END, "pad_token_id": END}
    text = CLIPTextConfig(vocab_size=len(WORDS), max_position_embeddings=8, **sizes, **ends)
    unet = UNet2DConditionModel(
        sample_size=4, layers_per_block=1, block_out_channels=(8, 8), norm_num_groups=4, cross_attention_dim=8,
        attention_head_dim=2, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    return StableDiffusionPipeline(
        vae=AutoencoderKL(block_out_channels=(4,) * 4, norm_num_groups=2, **blocks),
        text_encoder=CLIPTextModel(text).eval(),
        tokenizer=CLIPTokenizer(vocab={word: i for i, word in enumerate(WORDS)}, merges=[], model_max_length=8),
        unet=unet,
        scheduler=PNDMScheduler(steps_offset=1, prediction_type=prediction, **NOISE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
