"""RAFT for pictures: sample K images per prompt or class, keep the best, fine-tune the UNet on them, again.

    pip install -e ".[diffusion]"
    python examples/raft_diffusion.py --output-dir digits

trains a small UNet on scikit-learn's digits and aligns it in three ways, in minutes, offline, on a CPU: the table and the picture
of benchmarks/raft_diffusion. Any other pipeline of diffusers that has a UNet is `raft(pipeline, conditions, reward, …)`; with
--stable-diffusion MODEL it is Stable Diffusion 1.5 at 256 × 256 with LoRA in 16 bits, as in the paper (arXiv:2304.06767).

Every stage leaves its images, scores and choices as a parquet file and a PNG, then its weights. Begun again with the same command
a run goes on where it was killed, and on a CPU ends with the same weights, bit for bit. The paper's regulariser λ is left out: the
difference of denoising losses only bounds the KL in expectation over t and noise, and of a few draws it says little of one image.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler, DiffusionPipeline, UNet2DConditionModel, UNet2DModel
from numpy.typing import NDArray
from raft_diffusion_files import Condition, Images, read_stage, stage_file, write_stage
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from trl_ext.self_training import at_most_per_prompt, best_overall, best_per_prompt, random_of_same_size
from trl_ext.trainer_kit import seeded, stable_seed, written_whole

SCHEDULERS = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler")  # noise by ᾱ_t, which the loss below assumes
PREDICTIONS = ("epsilon", "v_prediction")
SELECTIONS = ("local", "global", "random")
Reward = Callable[[Images, list[Condition]], Sequence[float]]


@dataclass(frozen=True)
class Plan:
    """How a run goes.

    Args:
        stages: How often it samples, selects and fine-tunes.
        samples: K, images per condition and stage.
        selection: "local" keeps each condition's best, "global" the best 1/K of all, "random" as many as "local" blindly.
        steps, batch, learning_rate: Of each stage's fine-tuning (AdamW, begun anew).
        at_once: Images that are sampled together.
        seed: Everything random follows from it.
        sampling: What the pipeline's call takes: guidance_scale or eta in temperature's place, num_inference_steps, height, …
    """

    stages: int = 3
    samples: int = 8
    selection: str = "local"
    steps: int = 100
    batch: int = 32
    learning_rate: float = 1e-4
    at_once: int = 16
    seed: int = 0
    sampling: dict = field(default_factory=dict)

    def __post_init__(self):
        if self.selection not in SELECTIONS:
            raise ValueError(f"Plan(selection={self.selection!r}): expected one of {SELECTIONS}.")
        for name in ("stages", "samples", "steps", "batch", "at_once"):
            if getattr(self, name) < 1:
                raise ValueError(f"Plan({name}={getattr(self, name)}): expected a whole number from 1 on.")


def raft(pipeline: DiffusionPipeline, conditions: list[Condition], reward: Reward, folder: Path, plan: Plan) -> None:
    """RAFT's stages; they change the pipeline's UNet, in whatever of it has `requires_grad`.

        stage t:  for each condition c: x* = argmax over K images x ~ π_t(·|c) of r(x, c)
                  π_{t+1} = π_t fine-tuned on (c, x*) by E ‖target − UNet(x*_τ, τ, c)‖², over noise and times τ

    Args:
        pipeline: Called with a list of conditions; as `checked` says.
        conditions: Prompts or classes, each with K images of its own.
        reward: Of images `(N, H, W, C)`, uint8, and their conditions; N finite numbers.
        folder: Where each stage is kept; one that has stages of the same run goes on.
    """
    checked(pipeline)
    _same_run(folder, conditions, plan)
    for stage in range(plan.stages):
        table, weights = stage_file(folder, stage), folder / f"stage-{stage:03d}.safetensors"
        if not table.exists():
            write_stage(table, *grow(pipeline, conditions, reward, plan, stage))
        if weights.exists():
            pipeline.unet.load_state_dict(load_file(weights), strict=False)
            continue
        images, asked, _, kept = read_stage(table)  # as they are on disk, whether or not they were sampled just now
        improve(pipeline, images[kept], [asked[i] for i in np.flatnonzero(kept)], plan, stage)
        with written_whole(weights) as partial:
            save_file({name: value.contiguous() for name, value in trained(pipeline).items()}, partial)


def checked(pipeline: DiffusionPipeline) -> None:
    """Refuse what the loss does not fit: no UNet, another scheduler, another kind of prediction."""
    name, unet = type(pipeline).__name__, pipeline.components.get("unet")
    if not isinstance(unet, UNet2DModel | UNet2DConditionModel):
        raise ValueError(
            f"raft({name}): expected a UNet2DModel or UNet2DConditionModel as `unet`, got {type(unet).__name__}."
        )
    scheduler = pipeline.scheduler
    if type(scheduler).__name__ not in SCHEDULERS:
        raise ValueError(
            f"raft({name}): the scheduler {type(scheduler).__name__} is not supported; expected one of {SCHEDULERS}. If the "
            "model was trained with such noise, give pipeline.scheduler = DDIMScheduler.from_config(…)."
        )
    if scheduler.config.prediction_type not in PREDICTIONS:
        got = f"prediction_type={scheduler.config.prediction_type!r} is not supported"
        raise ValueError(f"raft({name}): {got}; expected one of {PREDICTIONS}.")


def _same_run(folder: Path, conditions: list[Condition], plan: Plan) -> None:
    """Write down what run a folder is of; a ValueError where it is of another."""
    told, record = json.dumps({"plan": asdict(plan), "conditions": conditions}, sort_keys=True), folder / "run.json"
    if record.exists() and record.read_text(encoding="utf-8") != told:
        raise ValueError(
            f"raft(folder={str(folder)!r}): the run there has another plan or other conditions. Give another."
        )
    with written_whole(record) as partial:
        partial.write_text(told, encoding="utf-8")


def grow(pipeline, conditions, reward: Reward, plan: Plan, stage: int) -> tuple[Images, list, NDArray, NDArray]:
    """K images of each condition, what was asked, its score, and whether it is kept."""
    prompts = np.repeat(np.arange(len(conditions)), plan.samples)
    asked = [conditions[i] for i in prompts]
    images = sample(pipeline, asked, plan, stable_seed(plan.seed, "sample", stage))
    scores = checked_scores(reward, images, asked)
    return images, asked, scores, select(scores, prompts, plan, stable_seed(plan.seed, "random", stage))


@torch.no_grad()
def sample(pipeline, asked: list[Condition], plan: Plan, seed: int) -> Images:
    """An image of each condition, `(N, H, W, C)`."""
    pipeline.unet.eval()
    pipeline.set_progress_bar_config(disable=True)
    found = []
    for at in range(0, len(asked), plan.at_once):
        random = torch.Generator().manual_seed(stable_seed(seed, at))
        call = {"generator": random, "output_type": "np"} | plan.sampling
        found.append((pipeline(asked[at : at + plan.at_once], **call).images * 255).round().astype(np.uint8))
    return np.concatenate(found)


def checked_scores(reward: Reward, images: Images, asked: list[Condition]) -> NDArray[np.floating]:
    """The reward's numbers; a ValueError unless there is a finite one for each image."""
    name = getattr(reward, "__name__", type(reward).__name__)
    scores = np.asarray(reward(images, asked), dtype=float)
    if scores.shape != (len(images),):
        raise ValueError(f"reward {name}: expected {len(images)} numbers, one per image, got shape {scores.shape}.")
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        raise ValueError(
            f"reward {name}: image {bad[0]} ({asked[bad[0]]!r}) has the score {scores[bad[0]]}: no finite number."
        )
    return scores


def select(scores, prompts, plan: Plan, seed: int) -> NDArray[np.bool_]:
    """One image per condition, or the best 1/K of all."""
    if plan.selection == "global":
        return best_overall(scores, acceptance_ratio=1 / plan.samples)
    local = at_most_per_prompt(best_per_prompt(scores, prompts), scores, prompts, count=1)
    return random_of_same_size(local, prompts, seed=seed) if plan.selection == "random" else local


def improve(pipeline, images: Images, asked: list[Condition], plan: Plan, stage: int) -> None:
    """Fine-tune the UNet on the kept images."""
    parameters = list(trained(pipeline).values())
    if not parameters:
        raise ValueError(
            "raft: nothing of pipeline.unet has requires_grad. Add an adapter, or call unet.requires_grad_()."
        )
    unet, optimizer = pipeline.unet.train(), torch.optim.AdamW(parameters, lr=plan.learning_rate)
    scaler = torch.amp.GradScaler(unet.device.type, enabled=unet.dtype == torch.float16)
    with seeded(stable_seed(plan.seed, "improve", stage)):
        for _ in range(plan.steps):
            rows = torch.randint(len(images), (plan.batch,)).tolist()
            loss = denoising_loss(pipeline, images[rows], [asked[i] for i in rows])
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            scaler.step(optimizer)
            scaler.update()


def denoising_loss(pipeline, images: Images, asked: list[Condition]) -> Tensor:
    """Mean squared error of the UNet's prediction: of the noise ε, or of v = √ᾱ ε − √(1 − ᾱ) x."""
    unet, noiser = pipeline.unet, DDPMScheduler.from_config(pipeline.scheduler.config)
    clean = latents(pipeline, images)
    noise = torch.randn(clean.shape).to(clean)
    times = torch.randint(noiser.config.num_train_timesteps, (len(clean),)).to(unet.device)
    target = noise if noiser.config.prediction_type == "epsilon" else noiser.get_velocity(clean, noise, times)
    with torch.autocast(unet.device.type, unet.dtype, enabled=unet.dtype != torch.float32):
        predicted = unet(noiser.add_noise(clean, noise, times), times, **condition(pipeline, asked)).sample
    return functional.mse_loss(predicted.float(), target.float())


@torch.no_grad()
def latents(pipeline, images: Images) -> Tensor:
    """What the UNet denoises: pixels in [−1, 1], or what the pipeline's VAE makes of them."""
    unet = pipeline.unet
    pixels = (torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1).to(unet.device, unet.dtype)
    vae = pipeline.components.get("vae")
    return pixels if vae is None else vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor


@torch.no_grad()
def condition(pipeline, asked: list[Condition]) -> dict[str, Tensor]:
    """What the UNet is told: classes, or the encoded prompts."""
    if isinstance(asked[0], str):
        return {"encoder_hidden_states": pipeline.encode_prompt(asked, pipeline.unet.device, 1, False)[0]}
    return {"class_labels": torch.tensor(asked, device=pipeline.unet.device)}


def trained(pipeline) -> dict[str, Tensor]:
    return {name: value for name, value in pipeline.unet.named_parameters() if value.requires_grad}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("raft_diffusion"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--stages", type=int, default=4)
    parser.add_argument(
        "--stable-diffusion", metavar="MODEL", help="a folder or id of Stable Diffusion 1.5; needs the next two"
    )
    parser.add_argument("--prompts", type=Path, help="one a line")
    parser.add_argument("--reward", help="module:function of images (N, H, W, C) and prompts")
    args = parser.parse_args(arguments)
    if not args.stable_diffusion:
        import raft_diffusion_digits

        raft_diffusion_digits.run(args.output_dir, args.seeds, stages=args.stages)
    elif args.prompts and args.reward:
        import raft_diffusion_sd15

        raft_diffusion_sd15.run(args)
    else:
        parser.error("--stable-diffusion needs --prompts and --reward")


if __name__ == "__main__":
    main()
