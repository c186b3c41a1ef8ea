"""examples/raft_diffusion.py: what it selects, refuses and learns, and that a killed run goes on with the same weights."""

import json
import os
import signal

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")
import raft_diffusion
from diffusers import DDIMScheduler, DDPMScheduler, DiffusionPipeline, EulerDiscreteScheduler
from peft import LoraConfig
from raft_diffusion import Plan, checked, checked_scores, denoising_loss, improve, raft, sample, select, trained
from raft_diffusion_digits import diversity, ink, sheet, table, tiny_pipeline
from raft_diffusion_files import read_stage, stage_file
from safetensors.torch import load_file
from tiny_diffusion import tiny_stable_diffusion

TINY = Plan(stages=2, samples=4, steps=3, batch=4, at_once=8, sampling={"num_inference_steps": 2})
CLASSES = [0, 1, 1]


def tiny(**options):
    return tiny_pipeline(channels=8, **options)


class NoUNet(DiffusionPipeline):
    def __init__(self, scheduler):
        super().__init__()
        self.register_modules(scheduler=scheduler)


def test_lora_of_a_unet_that_is_told_prompts():
    pipeline = tiny_stable_diffusion()
    pipeline.unet.requires_grad_(False)
    pipeline.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    before = {name: value.clone() for name, value in pipeline.unet.named_parameters()}
    improve(pipeline, np.full((4, 8, 8, 3), 200, np.uint8), ["a", "bb", "a", "cc"], TINY, 0)
    moved = {name for name, value in pipeline.unet.named_parameters() if not torch.equal(value, before[name])}
    assert moved and moved <= trained(pipeline).keys() and all("lora" in name for name in moved)


def test_the_best_image_of_each_condition_by_hand():
    scores, prompts = np.array([0.1, 0.4, 0.4, 0.9, 0.8, 0.7]), np.array([0, 0, 0, 1, 1, 1])
    kept = {name: np.flatnonzero(select(scores, prompts, Plan(samples=3, selection=name), 0)).tolist() for name in
            ("local", "global", "random")}  # fmt: skip
    assert kept["local"] == [1, 3] and kept["global"] == [3, 4]
    assert [prompts[i] for i in kept["random"]] == [0, 1]


def test_a_stage_is_on_disk_as_it_was_selected(tmp_path):
    raft(tiny(), CLASSES, ink, tmp_path, TINY)
    images, asked, scores, kept = read_stage(stage_file(tmp_path, 0))
    assert images.shape == (12, 8, 8, 1) and asked == [0] * 4 + [1] * 8
    np.testing.assert_allclose(scores, ink(images, asked))
    assert [scores[i : i + 4].argmax() + i for i in (0, 4, 8)] == np.flatnonzero(kept).tolist()
    assert stage_file(tmp_path, 0).with_suffix(".png").stat().st_size


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_loss_is_zero_for_a_unet_that_knows_the_target(prediction, monkeypatch):
    """On black images x = −1: x_t = −√ᾱ + √(1 − ᾱ) ε tells ε, and v = √ᾱ ε + √(1 − ᾱ)."""
    pipeline = tiny(prediction=prediction)
    bars = DDPMScheduler.from_config(pipeline.scheduler.config).alphas_cumprod

    def knows(noisy, times, class_labels):
        bar = bars[times].view(-1, 1, 1, 1)
        noise = (noisy + bar.sqrt()) / (1 - bar).sqrt()
        found = noise if prediction == "epsilon" else bar.sqrt() * noise + (1 - bar).sqrt()
        return type("Output", (), {"sample": found})

    monkeypatch.setattr(pipeline.unet, "forward", knows)
    assert denoising_loss(pipeline, np.zeros((6, 8, 8, 1), np.uint8), [0] * 6) < 1e-6


def test_one_stage_learns_what_random_selection_does_not(tmp_path):
    means = {}
    for name in ("local", "random"):
        pipeline = tiny(seed=1)
        options = {"stages": 1, "samples": 8, "steps": 60, "batch": 32, "learning_rate": 1e-3, "at_once": 400}
        raft(pipeline, [0, 1] * 10, ink, tmp_path / name, Plan(selection=name, **options))
        means[name] = ink(sample(pipeline, [0, 1] * 50, Plan(at_once=100), 7), []).mean()
    begun = ink(sample(tiny(seed=1), [0, 1] * 50, Plan(at_once=100), 7), []).mean()
    assert means["local"] > max(begun, means["random"]) + 0.01


@pytest.mark.parametrize("at", ["sampling", "improving"])
def test_killed_it_goes_on_to_the_same_weights(tmp_path, monkeypatch, at):
    raft(tiny(), CLASSES, ink, tmp_path / "whole", TINY)
    if not (child := os.fork()):
        calls = []

        def killed(*args):  # in the second stage
            calls.append(args)
            if len(calls) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args)

        name = {"sampling": "sample", "improving": "improve"}[at]
        original = getattr(raft_diffusion, name)
        setattr(raft_diffusion, name, killed)
        raft(tiny(), CLASSES, ink, tmp_path / "killed", TINY)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert stage_file(tmp_path / "killed", 1).exists() == (at == "improving")
    pipeline = tiny()
    raft(pipeline, CLASSES, ink, tmp_path / "killed", TINY)
    weights = load_file(tmp_path / "whole" / "stage-001.safetensors")
    assert weights and all(torch.equal(value, pipeline.unet.state_dict()[name]) for name, value in weights.items())


def test_a_folder_of_another_run_is_refused(tmp_path):
    raft(tiny(), CLASSES, ink, tmp_path, TINY)
    with pytest.raises(ValueError, match="another plan or other conditions"):
        raft(tiny(), [0, 1, 2], ink, tmp_path, TINY)


def test_bad_rewards():
    images = np.zeros((2, 8, 8, 1), np.uint8)
    with pytest.raises(ValueError, match=r"image 1 \(7\) has the score nan"):
        checked_scores(lambda images, asked: [0.0, np.nan], images, [3, 7])
    with pytest.raises(ValueError, match=r"expected 2 numbers, one per image, got shape \(3,\)"):
        checked_scores(lambda images, asked: [0.0] * 3, images, [3, 7])


def test_what_the_loss_does_not_fit():
    pipeline = tiny()
    pipeline.scheduler = EulerDiscreteScheduler()
    with pytest.raises(ValueError, match="EulerDiscreteScheduler is not supported"):
        checked(pipeline)
    pipeline.scheduler = DDIMScheduler(prediction_type="sample")
    with pytest.raises(ValueError, match="prediction_type='sample' is not supported"):
        checked(pipeline)
    with pytest.raises(ValueError, match="expected a UNet2DModel or UNet2DConditionModel"):
        checked(NoUNet(DDIMScheduler()))
    with pytest.raises(ValueError, match="selection='best'"):
        Plan(selection="best")


def test_nothing_to_train(tmp_path):
    pipeline = tiny()
    pipeline.unet.requires_grad_(False)
    with pytest.raises(ValueError, match=r"nothing of pipeline\.unet has requires_grad"):
        raft(pipeline, CLASSES, ink, tmp_path, TINY)


def test_measures_table_and_sheet_by_hand():
    images = np.zeros((20, 8, 8, 1), np.uint8)
    images[1::2] = 255
    asked = [i // 2 for i in range(20)]
    assert ink(images, asked).tolist() == [0, 1] * 10 and diversity(images, asked) == 1
    assert sheet([images, images]).size == (20 * 10 * 3, 2 * 10 * 3)
    row = {"held-out": 0.5, "confidence": 0.5, "ink": 0.5, "diversity": 0.5}
    text = table(
        {"random": [row] * 3, "ink": [json.loads(json.dumps(row)) | {"ink": value} for value in (0.7, 0.8, 0.9)]}
    )
    assert "| ink − random | the same | the same | +0.300 ± 0.058 (not resolved, below 0.310) | the same |" in text
