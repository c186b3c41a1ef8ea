"""RAFT for pictures: sample K images per prompt or class, keep the best, fine-tune the UNet on them, again.

    pip install -e ".[diffusion]"
    python examples/raft_diffusion.py --output-dir digits

trains a small UNet on scikit-learn's digits and aligns it in three ways, in minutes, offline, on a CPU: the table and the picture
of benchmarks/raft_diffusion. Any other pipeline of diffusers that has a UNet is `raft(pipeline, conditions, reward, …)`; with
--stable-diffusion MODEL it is Stable Diffusion 1.5 at 256 × 256 with LoRA in 16 bits, as in the paper (arXiv:2304.06767).

Every stage leaves its images, scores and choices as a parquet file and a PNG, then its weights. Begun again with the same command
a run goes on where it was killed, and on a CPU ends with the same weights, bit for bit. The paper's regulariser λ is left out: a
denoising loss bounds log π from one side, so the difference of two is no bound of a KL, and of a few draws it says little of an image.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from numpy.typing import NDArray
from raft_diffusion_checks import (
    check_plan,
    checked,
    checked_conditions,
    checked_images,
    checked_scores,
    name_of,
    trained,
)
from raft_diffusion_files import (
    Condition,
    Images,
    begin_or_go_on,
    read_stage,
    stage_file,
    take_weights,
    weights_file,
    write_stage,
    write_weights,
)
from torch import Tensor
from torch.nn import functional

from trl_ext.self_training import at_most_per_prompt, best_overall, best_per_prompt, random_of_same_size
from trl_ext.trainer_kit import ends_in_one_line, model_fingerprint, seeded, stable_seed

PLAIN = {"num_images_per_prompt": 1, "do_classifier_free_guidance": False}
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
        sampling: What else the pipeline's call takes: guidance_scale or eta in temperature's place, num_inference_steps, height, …
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
        check_plan(self)


def raft(pipeline: DiffusionPipeline, conditions: list[Condition], reward: Reward, folder: Path, plan: Plan) -> None:
    """RAFT's stages; they change the pipeline's UNet, in whatever of it has `requires_grad`.

        stage t:  for each condition c: x* = argmax over K images x ~ π_t(·|c) of r(x, c)
                  π_{t+1} = π_t fine-tuned on (c, x*) by E ‖target − UNet(x*_τ, τ, c)‖², over noise and times τ

    Args:
        pipeline: Called with a list of conditions; as `checked` says.
        conditions: Prompts or classes, each with K images of its own.
        reward: Of images `(N, H, W, C)`, uint8, and their conditions; N finite numbers.
        folder: Where each stage is kept; a run that is there goes on, from the weights that it began with.
    """
    checked(pipeline)
    folder, conditions = Path(folder), checked_conditions(pipeline, conditions)
    begin_or_go_on(folder, pipeline.unet, trained(pipeline), _run(pipeline, conditions, reward, plan))
    for stage in range(plan.stages):
        table, weights = stage_file(folder, stage), weights_file(folder, stage)
        if not table.exists():
            write_stage(table, *grow(pipeline, conditions, reward, plan, stage))
        if weights.exists():
            take_weights(pipeline.unet, weights)
            continue
        images, asked, _, kept = read_stage(table)  # as they are on disk, whether or not they were sampled just now
        improve(pipeline, images[kept], [asked[i] for i in np.flatnonzero(kept)], plan, stage)
        write_weights(weights, trained(pipeline))


def _run(pipeline, conditions: list[Condition], reward: Reward, plan: Plan) -> dict:
    """What makes a run what it is, but for how many stages it has: more can follow."""
    rest = {name: value for name, value in asdict(plan).items() if name != "stages"}
    noise = [type(pipeline.scheduler).__name__, pipeline.scheduler.config.prediction_type]
    named = {"pipeline": [type(pipeline).__name__, *noise], "reward": name_of(reward)}
    return named | {"plan": rest, "conditions": conditions, "unet": model_fingerprint(pipeline.unet)}


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
        some = asked[at : at + plan.at_once]
        images = pipeline(some, generator=random, output_type="np", **plan.sampling).images
        found.append(checked_images(pipeline, images, len(some)))
    return np.concatenate(found)


def select(scores, prompts, plan: Plan, seed: int) -> NDArray[np.bool_]:
    """One image per condition, or the best 1/K of all."""
    if plan.selection == "global":
        return best_overall(scores, acceptance_ratio=1 / plan.samples)
    local = at_most_per_prompt(best_per_prompt(scores, prompts), scores, prompts, count=1)
    return random_of_same_size(local, prompts, seed=seed) if plan.selection == "random" else local


def improve(pipeline, images: Images, asked: list[Condition], plan: Plan, stage: int) -> None:
    """Fine-tune the UNet on the kept images."""
    parameters = list(trained(pipeline).values())
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
    unet.eval()


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
        return {"encoder_hidden_states": pipeline.encode_prompt(asked, device=pipeline.unet.device, **PLAIN)[0]}
    return {"class_labels": torch.tensor(asked, device=pipeline.unet.device)}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("raft_diffusion"))
    parser.add_argument("--seeds", type=int, nargs="+", help="of the digits 0 1 2 unless given, else one, 0")
    parser.add_argument("--stages", type=int, default=4)
    parser.add_argument(
        "--stable-diffusion", metavar="MODEL", help="a folder or id of Stable Diffusion 1.5; needs the next two"
    )
    parser.add_argument("--prompts", type=Path, help="a file with one a line")
    parser.add_argument("--reward", help="module:function or file.py:function of images (N, H, W, C) and prompts")
    args = parser.parse_args(arguments)
    if len({bool(args.stable_diffusion), bool(args.prompts), bool(args.reward)}) == 2:
        parser.error("--stable-diffusion, --prompts and --reward go together")
    if args.stable_diffusion:
        import raft_diffusion_sd15

        if len(args.seeds or [0]) > 1:
            parser.error("--stable-diffusion takes one seed")
        raft_diffusion_sd15.run(args, *(args.seeds or [0]))
    else:
        import raft_diffusion_digits

        raft_diffusion_digits.run(args.output_dir, args.seeds or [0, 1, 2], stages=args.stages)


if __name__ == "__main__":
    stopped = "The same command goes on where it was."
    with ends_in_one_line("raft_diffusion.py", when_stopped=stopped, folder=Path(__file__).parent):
        main()
