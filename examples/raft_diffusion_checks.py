"""What raft_diffusion.py refuses, before it costs anything: each message says what came, what was expected and what to do."""

from collections.abc import Callable, Sequence
from math import isfinite
from numbers import Integral, Real

import numpy as np
from diffusers import DiffusionPipeline, UNet2DConditionModel, UNet2DModel
from numpy.typing import NDArray
from raft_diffusion_files import Condition, Images
from torch import Tensor, float16

from trl_ext.trainer_kit import check_seed

SCHEDULERS = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler")  # noise by ᾱ_t, which the loss assumes
PREDICTIONS = ("epsilon", "v_prediction")
SELECTIONS = ("local", "global", "random")
OURS = ("prompt", "generator", "output_type", "return_dict", "num_images_per_prompt")  # of a pipeline's call


def check_plan(plan) -> None:
    if plan.selection not in SELECTIONS:
        raise ValueError(f"Plan(selection={plan.selection!r}): expected one of {SELECTIONS}.")
    for name in ("stages", "samples", "steps", "batch", "at_once"):
        value = getattr(plan, name)
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            raise ValueError(f"Plan({name}={value!r}): expected a whole number from 1 on.")
    rate = plan.learning_rate
    if not isinstance(rate, Real) or not isfinite(rate) or rate <= 0:
        raise ValueError(f"Plan(learning_rate={rate!r}): expected a finite number above 0, such as 1e-4.")
    check_seed(plan.seed, call=f"Plan(seed={plan.seed!r})")
    for name, value in plan.sampling.items():
        if name in OURS:
            raise ValueError(f"Plan(sampling={{{name!r}: …}}): raft sets it itself. Leave it out.")
        if not isinstance(value, str | Real | list | None):
            raise ValueError(
                f"Plan(sampling={{{name!r}: {value!r}}}): expected what JSON can tell. Give a number or text."
            )


def checked(pipeline: DiffusionPipeline) -> None:
    """Refuse what the loss does not fit: no UNet, another scheduler, another kind of prediction, a UNet that is told more."""
    name, unet, scheduler = (
        type(pipeline).__name__,
        pipeline.components.get("unet"),
        pipeline.components.get("scheduler"),
    )
    if not isinstance(unet, UNet2DModel | UNet2DConditionModel):
        raise ValueError(
            f"raft({name}): expected a UNet2DModel or UNet2DConditionModel as `unet`, got {type(unet).__name__}."
        )
    if type(scheduler).__name__ not in SCHEDULERS:
        raise ValueError(
            f"raft({name}): the scheduler {type(scheduler).__name__} is not supported; expected one of {SCHEDULERS}. If the "
            "model was trained with such noise, give pipeline.scheduler = DDIMScheduler.from_config(…)."
        )
    if scheduler.config.prediction_type not in PREDICTIONS:
        got = f"prediction_type={scheduler.config.prediction_type!r} is not supported"
        raise ValueError(f"raft({name}): {got}; expected one of {PREDICTIONS}.")
    _check_told(name, unet, pipeline.components.get("vae"))


def _check_told(name: str, unet: UNet2DModel | UNet2DConditionModel, vae) -> None:
    """Refuse a UNet that reads or gives more than noisy images, or is told more than a class or a prompt."""
    config = unet.config
    channels = config.in_channels if vae is None else vae.config.latent_channels
    if not config.in_channels == config.out_channels == channels:
        raise ValueError(
            f"raft({name}): the UNet reads {config.in_channels} channels and gives {config.out_channels}; expected "
            f"{channels} of both, those of its images. Inpainting, upscaling and a learned variance are not supported."
        )
    more = config.get("addition_embed_type") or config.get("encoder_hid_dim_type")
    if more:
        raise ValueError(
            f"raft({name}): the UNet is told {more!r} beside its prompts, as Stable Diffusion XL's is, which is not "
            "supported. Give a pipeline of the kind of Stable Diffusion 1 or 2."
        )
    if isinstance(unet, UNet2DModel) and unet.class_embedding is None:
        raise ValueError(f"raft({name}): the UNet is told no classes. Make it with num_class_embeds=….")


def checked_conditions(pipeline: DiffusionPipeline, conditions: Sequence[Condition]) -> list[Condition]:
    """Prompts for a UNet that is told texts, or classes that it has, as plain texts or numbers."""
    prompted = isinstance(pipeline.unet, UNet2DConditionModel)
    if isinstance(conditions, str) or not len(conditions):
        raise ValueError(f"raft(conditions={conditions!r}): expected a list of prompts or classes, at least one.")
    count = pipeline.unet.config.get("num_class_embeds")
    for one in conditions:
        whole = isinstance(one, Integral) and not isinstance(one, bool) and 0 <= one < (count or one + 1)
        if not (isinstance(one, str) if prompted else whole):
            wanted = "prompts" if prompted else f"classes from 0 to {count - 1}" if count else "classes from 0 on"
            raise ValueError(f"raft(conditions=[… {one!r} …]): the UNet is told {wanted}. Give those.")
    return [one if prompted else int(one) for one in conditions]


def trained(pipeline) -> dict[str, Tensor]:
    """What of the UNet a run changes; a ValueError where that is nothing, or has no room for gradients."""
    found = {name: value for name, value in pipeline.unet.named_parameters() if value.requires_grad}
    if not found:
        raise ValueError(
            "raft: nothing of pipeline.unet has requires_grad. Add an adapter, or call unet.requires_grad_()."
        )
    for name, value in found.items():
        if value.dtype == float16:
            raise ValueError(
                f"raft: {name} would be trained in float16, which loses small gradients. Train an adapter in "
                "float32 beside it, or load the UNet in float32."
            )
    return found


def checked_images(pipeline: DiffusionPipeline, images, count: int) -> Images:
    """What a pipeline gave, numbers in [0, 1], as bytes; a ValueError unless there is one for each condition, all finite."""
    name = type(pipeline).__name__
    if not isinstance(images, np.ndarray) or images.ndim != 4 or len(images) != count:
        got = f"shape {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
        raise ValueError(f"raft({name}): expected {count} images (N, H, W, C) of as many conditions, got {got}.")
    if not np.isfinite(images).all():
        raise ValueError(f"raft({name}): it gave images that are not finite. Lower learning_rate, or leave 16 bits.")
    return (images * 255).round().astype(np.uint8)


def name_of(reward) -> str:
    return getattr(reward, "__name__", type(reward).__name__)


def checked_scores(
    reward: Callable[[Images, list[Condition]], Sequence[float]], images: Images, asked: list[Condition]
) -> NDArray[np.floating]:
    """The reward's numbers; a ValueError unless there is a finite one for each image."""
    name, given = name_of(reward), reward(images, asked)
    try:
        scores = np.asarray(given.detach().cpu() if isinstance(given, Tensor) else given, dtype=float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"reward {name}: expected {len(images)} numbers, one per image ({error}).") from error
    if scores.shape != (len(images),):
        raise ValueError(f"reward {name}: expected {len(images)} numbers, one per image, got shape {scores.shape}.")
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        raise ValueError(
            f"reward {name}: image {bad[0]} ({asked[bad[0]]!r}) has the score {scores[bad[0]]}: no finite number."
        )
    return scores
