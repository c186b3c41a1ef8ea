"""Stable Diffusion 1.5 in raft_diffusion.py, as in RAFT's paper: LoRA in 16 bits at 256 × 256."""

import argparse
import importlib

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from peft import LoraConfig
from raft_diffusion import Plan, raft, trained


def run(args: argparse.Namespace) -> None:
    """The paper's setting, for one card of 24 GB; its memory is in benchmarks/raft_diffusion/README.md. Not run by us."""
    pipeline = StableDiffusionPipeline.from_pretrained(args.stable_diffusion, dtype=torch.float16, safety_checker=None)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        part.requires_grad_(False)
    pipeline.unet.add_adapter(LoraConfig(r=16, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    for value in trained(pipeline).values():
        value.data = value.data.float()
    module, _, name = args.reward.partition(":")
    prompts = [line for line in args.prompts.read_text(encoding="utf-8").splitlines() if line]
    sampling = {"height": 256, "width": 256, "guidance_scale": 7.5, "num_inference_steps": 50}
    plan = Plan(stages=args.stages, batch=8, sampling=sampling, seed=args.seeds[0])
    reward = getattr(importlib.import_module(module), name)
    raft(pipeline.to("cuda"), prompts, reward, args.output_dir, plan)
