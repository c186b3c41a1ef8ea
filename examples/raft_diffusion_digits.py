"""The small world of raft_diffusion.py: scikit-learn's digits, 8 × 8, five arms, a table and a picture.

    start             a class-conditional UNet, trained in place, too short to be good
    confidence        RAFT, paid by a logistic regression's probability of the asked class
    ink               RAFT, paid by the share of ink, which says nothing of the class: made to be hacked
    random            as many images, drawn blindly
    ink, on and on    the first seed's ink alone, twelve times the stages at a higher rate, to show where its hack ends

Primary endpoint, named beforehand: the held-out classifier's probability of the asked class (a kernel SVM on digits that neither the
UNet nor the paid classifier has seen), confidence − random, paired within seeds. Secondary: ink, and diversity, the mean distance
of two images of a class.
"""

import json
import time
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from benchmarks.common.over_seeds import mean_and_deviation, paired_difference
from diffusers import DDIMScheduler, DiffusionPipeline, UNet2DModel
from diffusers.pipelines import ImagePipelineOutput
from raft_diffusion import Plan, improve, raft, sample
from raft_diffusion_files import Images, picture
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC

from trl_ext.trainer_kit import seeded, stable_seed, written_whole

ARMS = ("start", "random", "confidence", "ink")
MEASURES = ("held-out", "confidence", "ink", "diversity")
SHOWN, ENLARGED = 2, 3  # images per class, and by how much
MEASURED = 40  # images per class
SETTING = {"samples": 8, "steps": 60, "batch": 32, "learning_rate": 5e-4, "at_once": 400, "sampling": {}}
ON_AND_ON = {"steps": 15, "learning_rate": 1e-3}  # few steps a stage keep the images from becoming one
TIMES = 12


class DigitPipeline(DiffusionPipeline):
    """DDIM of classes: `pipeline([3, 3, 7], eta=1.0)`."""

    def __init__(self, unet: UNet2DModel, scheduler: DDIMScheduler):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(self, classes, *, generator=None, eta=1.0, num_inference_steps=20, output_type="np"):
        self.scheduler.set_timesteps(num_inference_steps)
        size = self.unet.config.sample_size
        image, labels = torch.randn(len(classes), 1, size, size, generator=generator), torch.tensor(classes)
        for t in self.scheduler.timesteps:
            predicted = self.unet(image, t, class_labels=labels).sample
            image = self.scheduler.step(predicted, t, image, eta=eta, generator=generator).prev_sample
        return ImagePipelineOutput(images=(image / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy())


def tiny_pipeline(*, channels: int = 16, seed: int = 0, prediction: str = "epsilon") -> DigitPipeline:
    with seeded(stable_seed(seed, "unet")):
        unet = UNet2DModel(
            sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, num_class_embeds=10, norm_num_groups=8,
            block_out_channels=(channels, 2 * channels), down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
        )  # fmt: skip
    return DigitPipeline(unet, DDIMScheduler(num_train_timesteps=200, prediction_type=prediction, beta_end=0.05))


def digits() -> tuple[Images, np.ndarray]:
    data = load_digits()
    return (data.images * 255 / 16).round().astype(np.uint8)[..., None], data.target


def flat(images: Images) -> np.ndarray:
    return images.reshape(len(images), -1) / 255


class Confidence:
    """A classifier's probability of the asked class."""

    def __init__(self, classifier, images: Images, labels: np.ndarray):
        self.classifier = classifier.fit(flat(images), labels)

    def __call__(self, images: Images, asked: list[int]) -> np.ndarray:
        return self.classifier.predict_proba(flat(images))[np.arange(len(asked)), asked]


def ink(images: Images, asked: list[int]) -> np.ndarray:
    """The share of ink, 1 where all is full."""
    return flat(images).mean(1)


def classifiers(images: Images, labels: np.ndarray) -> tuple[Confidence, Confidence]:
    """The paid one, on what the UNet sees too, and the held-out one on the other half."""
    paid = Confidence(LogisticRegression(max_iter=1000, C=0.1), images[::2], labels[::2])
    return paid, Confidence(CalibratedClassifierCV(SVC(), ensemble=False), images[1::2], labels[1::2])


def diversity(images: Images, asked: list[int]) -> float:
    """Mean distance of two images of a class, as the root mean square of their pixels' differences."""
    rows = flat(images)
    groups = [rows[np.array(asked) == kind] for kind in sorted(set(asked))]
    return float(np.mean([np.sqrt(np.mean((a - b) ** 2)) for group in groups for a, b in combinations(group, 2)]))


@dataclass(frozen=True)
class World:
    """What all arms share.

    Args:
        folder: Where the run is kept.
        images, labels: What the UNet sees before any RAFT.
        paid, held_out: The classifiers.
        start_steps: How long it sees them.
    """

    folder: Path
    images: Images
    labels: np.ndarray
    paid: Confidence
    held_out: Confidence
    start_steps: int

    def arm(self, name: str, reward, plan: Plan) -> tuple[dict[str, float], Images]:
        """One arm's measures, and the images that they were taken of; without a reward, of the start."""
        pipeline = tiny_pipeline(seed=plan.seed)
        begin(pipeline, self.folder / f"start-{plan.seed}.pt", self.images, self.labels, self.start_steps, plan.seed)
        if reward is not None:
            raft(pipeline, list(range(10)) * 3, reward, self.folder / f"{name}-{plan.seed}", plan)
        asked = sorted(list(range(10)) * MEASURED)
        made = sample(pipeline, asked, plan, stable_seed(plan.seed, "measure"))
        means = (each(made, asked).mean() for each in (self.held_out, self.paid, ink))
        return dict(zip(MEASURES, map(float, (*means, diversity(made, asked))), strict=True)), made


def run(folder: Path, seeds: list[int], *, stages: int = 4, start_steps: int = 500) -> str:
    """All arms on all seeds, the table printed and written, and the picture of the first seed."""
    images, labels = digits()
    paid, held_out = classifiers(images, labels)
    world = World(folder, images[::2], labels[::2], paid, held_out, start_steps)
    found, shown, began = {}, {}, time.process_time()
    for done, seed in enumerate(seeds, 1):
        for name, reward in zip(ARMS, (None, paid, paid, ink), strict=True):
            plan = Plan(stages, selection="random" if name == "random" else "local", seed=seed, **SETTING)
            row, made = world.arm(name, reward, plan)
            found.setdefault(name, []).append(row)
            shown.setdefault(name, made)
        used = time.process_time() - began
        print(f"seed {seed}: {used:.0f} CPU seconds so far, about {used / done * len(seeds):.0f} of all seeds")
    far = Plan(TIMES * stages, seed=seeds[0], **SETTING | ON_AND_ON)
    row, shown["on and on"] = world.arm("ink-on-and-on", ink, far)
    print(f"ink, on and on: {time.process_time() - began:.0f} CPU seconds in all")
    text = table(found, {f"ink, {far.stages} stages, seed {far.seed} alone": row})
    print(text)
    with written_whole(folder / "table.md") as partial:
        partial.write_text(text + "\n", encoding="utf-8")
    with written_whole(folder / "results.json") as partial:
        partial.write_text(json.dumps(found | {"on and on": [row]}, indent=1), encoding="utf-8")
    sheet(list(shown.values())).save(folder / "samples.png")
    return text


def begin(pipeline: DigitPipeline, file: Path, images: Images, labels: np.ndarray, steps: int, seed: int) -> None:
    """The weights that all arms of a seed begin with."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        improve(
            pipeline, images, labels.tolist(), Plan(steps=steps, batch=64, learning_rate=2e-3, seed=seed), stage=-1
        )
        partial = file.with_suffix(".partial")
        torch.save(pipeline.unet.state_dict(), partial)
        partial.replace(file)
    pipeline.unet.load_state_dict(torch.load(file))


def table(found: dict[str, list[dict[str, float]]], alone: dict[str, dict[str, float]] | None = None) -> str:
    """Mean ± deviation over seeds, rows of one seed alone, and the paired differences to random selection."""
    lines = ["| arm | " + " | ".join(MEASURES) + " |", "|---" * (1 + len(MEASURES)) + "|"]
    for arm, rows in found.items():
        cells = [mean_and_deviation([row[name] for row in rows], digits=3) for name in MEASURES]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    for name, row in (alone or {}).items():
        lines.append(f"| {name} | " + " | ".join(f"{row[measure]:.3f}" for measure in MEASURES) + " |")
    for arm in [arm for arm in found if arm != "random"]:
        pairs = [([row[name] for row in found[arm]], [row[name] for row in found["random"]]) for name in MEASURES]
        lines.append(f"| {arm} − random | " + " | ".join(paired_difference(*pair) for pair in pairs) + " |")
    return "\n".join(lines)


def sheet(arms: list[Images]):
    """A row of each arm: the first images of each class, enlarged, ink dark."""
    rows = []
    for images in arms:
        first = images.reshape(10, -1, *images.shape[1:])[:, :SHOWN].reshape(-1, *images.shape[1:])
        framed = [np.pad(255 - image, ((1, 1), (1, 1), (0, 0)), constant_values=200) for image in first]
        rows.append(np.concatenate(framed, axis=1))
    return picture(np.concatenate(rows).repeat(ENLARGED, 0).repeat(ENLARGED, 1))
