"""Stable Diffusion 1.5 in raft_diffusion.py, as in RAFT's paper: LoRA in 16 bits at 256 × 256."""

import argparse

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from peft import LoraConfig
from raft_diffusion import Plan, raft

from trl_ext.cli import named_reward
from trl_ext.trainer_kit import seeded, stable_seed

SAMPLING = {"height": 256, "width": 256, "guidance_scale": 7.5, "num_inference_steps": 50}
SETTING = {"samples": 8, "steps": 100, "batch": 8, "learning_rate": 1e-4, "sampling": SAMPLING}


def run(args: argparse.Namespace, seed: int) -> StableDiffusionPipeline:
    """The paper's setting, for one card of 24 GB; its memory is in benchmarks/raft_diffusion/README.md. Not run by us."""
    reward, prompts = named_reward(args.reward), read_prompts(args.prompts)
    if not callable(reward):
        raise ValueError(f"--reward {args.reward}: expected module:function or file.py:function.")
    pipeline = StableDiffusionPipeline.from_pretrained(args.stable_diffusion, dtype=torch.float16, safety_checker=None)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    add_lora(pipeline, seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    raft(pipeline.to(device), prompts, reward, args.output_dir, Plan(args.stages, seed=seed, **SETTING))
    return pipeline


def read_prompts(path) -> list[str]:
    prompts = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not prompts:
        raise ValueError(f"--prompts {path}: expected a prompt in each line, got none.")
    return prompts


def add_lora(pipeline: StableDiffusionPipeline, seed: int) -> None:
    """Freeze all, and add to the UNet's attention an adapter in 32 bits."""
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        part.requires_grad_(False)
    with seeded(stable_seed(seed, "lora")):
        pipeline.unet.add_adapter(LoraConfig(r=16, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    for value in pipeline.unet.parameters():
        if value.requires_grad:
            value.data = value.data.float()
