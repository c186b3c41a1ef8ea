"""examples/raft_diffusion.py with other pipelines: Stable Diffusion's own code with tiny parts, v-prediction, bad input."""

import os
import signal

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")
import raft_diffusion
import raft_diffusion_digits
import raft_diffusion_sd15
from diffusers import DDIMScheduler, UNet2DModel
from peft import LoraConfig
from PIL import Image
from raft_diffusion import Plan, main, raft
from raft_diffusion_checks import checked, checked_conditions, checked_images, checked_scores
from raft_diffusion_digits import DigitPipeline, tiny_pipeline
from raft_diffusion_files import read_stage, stage_file
from safetensors.torch import load_file
from tiny_diffusion import tiny_stable_diffusion

SMALL = {"height": 32, "width": 32, "num_inference_steps": 2}
PLAN = Plan(stages=2, samples=3, steps=4, batch=4, learning_rate=1e-2, sampling=SMALL)
PROMPTS = ["a cat", "a dog"]


def brightness(images, asked):
    return images.mean((1, 2, 3))


def class_first(images, asked):
    """Higher for class 1 than for class 0, whatever the image."""
    return brightness(images, asked) / 256 + np.array(asked)


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Stable Diffusion 1.5 by its flag, on a folder with a model that has all its parts."""
    tiny_stable_diffusion().save_pretrained(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("a cat\n\na dog\n", encoding="utf-8")
    (tmp_path / "rewards.py").write_text("def one(images, prompts):\n    return images.mean((1, 2, 3))\n")
    monkeypatch.chdir(tmp_path)
    smaller = {"samples": 2, "steps": 2, "batch": 2, "sampling": raft_diffusion_sd15.SAMPLING | SMALL}
    monkeypatch.setattr(raft_diffusion_sd15, "SETTING", raft_diffusion_sd15.SETTING | smaller)
    words = ["--stable-diffusion", "model", "--prompts", "prompts.txt", "--reward", "rewards.py:one", "--stages", "2"]
    return lambda folder: main([*words, "--output-dir", folder])


def weights_of(folder) -> dict[str, dict[str, torch.Tensor]]:
    return {path.stem: load_file(path) for path in sorted(folder.glob("*.safetensors"))}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_stable_diffusion_by_its_flag(command, tmp_path):
    """In 16 bits, with guidance, through the pipeline, VAE, tokenizer and text encoder of diffusers."""
    command("out")
    images, asked, scores, kept = read_stage(stage_file(tmp_path / "out", 0))
    assert images.shape == (4, 32, 32, 3) and asked == ["a cat"] * 2 + ["a dog"] * 2
    np.testing.assert_allclose(scores, brightness(images, asked))
    assert np.flatnonzero(kept).tolist() == [scores[:2].argmax(), scores[2:].argmax() + 2]
    found = weights_of(tmp_path / "out")
    assert list(found) == ["stage-000", "stage-001", "start"]
    assert all("lora" in name and value.dtype == torch.float32 for name, value in found["start"].items())
    assert all(value.isfinite().all() for value in found["stage-001"].values())
    grown = [name for name in found["start"] if "lora_B" in name]
    assert grown and all(found["stage-000"][name].any() and not found["start"][name].any() for name in grown)


def test_killed_it_goes_on_to_the_same_adapter(command, tmp_path):
    command("whole")
    if not (child := os.fork()):

        def killed(*args):  # in the first stage, before any weights of it are kept
            os.kill(os.getpid(), signal.SIGKILL)

        raft_diffusion.improve = killed
        command("killed")
        os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert list(weights_of(tmp_path / "killed")) == ["start"]
    command("killed")
    assert same(weights_of(tmp_path / "killed")["stage-001"], weights_of(tmp_path / "whole")["stage-001"])


def test_an_adapter_that_was_made_anew_begins_as_it_did(tmp_path):
    """A user's LoRA has random numbers that follow from nobody's seed."""
    for last in ("stage-000", "stage-001"):
        pipeline = tiny_stable_diffusion()
        pipeline.unet.requires_grad_(False)
        torch.seed()
        pipeline.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"]))
        raft(pipeline, PROMPTS, brightness, tmp_path / "run", PLAN)
        found = weights_of(tmp_path / "run")
        if last == "stage-000":
            whole = found
            for name in ("stage-000", "stage-001"):
                (tmp_path / "run" / f"{name}.safetensors").unlink()
    assert same(found["stage-001"], whole["stage-001"])


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_all_of_a_unet_that_is_told_prompts(tmp_path, prediction):
    """In full, by the scheduler that Stable Diffusion 1.5 comes with, or v as Stable Diffusion 2 predicts it."""
    pipeline = tiny_stable_diffusion(prediction)
    pipeline.unet.requires_grad_(True)
    raft(pipeline, PROMPTS, brightness, tmp_path, PLAN)
    found = weights_of(tmp_path)
    named = dict(pipeline.unet.named_parameters())
    assert found["start"].keys() == found["stage-001"].keys() == named.keys()
    assert all(not torch.equal(found["stage-000"][name], found["start"][name]) for name in named)
    assert same(found["stage-001"], {name: value.detach() for name, value in named.items()})


@pytest.mark.parametrize(("prediction", "near"), [("epsilon", 75), ("v_prediction", 40)])
def test_either_prediction_learns_to_draw_what_it_is_shown(prediction, near):
    """An image half black, half white: of the other prediction's targets, v would be left 84 gray levels from it."""
    pipeline, plan = tiny_pipeline(channels=8, prediction=prediction), Plan(steps=60, batch=16, learning_rate=5e-3)
    shown = np.zeros((2, 8, 8, 1), np.uint8)
    shown[:, :, :4] = 255

    def away():
        return np.abs(raft_diffusion.sample(pipeline, [3] * 8, plan, 0).astype(float) - shown[:1]).mean()

    assert away() > 120
    raft_diffusion.improve(pipeline, shown, [3, 3], plan, 0)
    assert away() < near


def test_global_keeps_the_best_of_all_and_learns_from_them(tmp_path):
    """Class 1 is paid more than class 0 whatever is drawn: "local" keeps one of each, "global" none of class 0."""
    kept_classes, moved = {}, {}
    for selection in ("local", "global"):
        pipeline, folder = tiny_pipeline(channels=8), tmp_path / selection
        begun = {name: value.clone() for name, value in pipeline.unet.state_dict().items()}
        plan = Plan(stages=2, samples=4, steps=3, batch=4, selection=selection, sampling={"num_inference_steps": 2})
        raft(pipeline, [0, 1], class_first, folder, plan)
        _, asked, scores, kept = read_stage(stage_file(folder, 1))
        kept_classes[selection] = [asked[i] for i in np.flatnonzero(kept)]
        assert selection == "local" or sorted(scores[kept]) == sorted(scores)[-2:]
        table = "class_embedding.weight"
        moved[selection] = (pipeline.unet.state_dict()[table] != begun[table]).any(1)[:2].tolist()
    assert kept_classes == {"local": [0, 1], "global": [1, 1]}
    assert moved["local"] == [True, True]


def test_more_stages_go_on_and_other_rewards_do_not(tmp_path):
    for stages in (1, 2):
        raft(tiny_pipeline(channels=8), [0, 1], brightness, tmp_path, _digits(stages))
    assert list(weights_of(tmp_path)) == ["stage-000", "stage-001", "start"]
    raft(tiny_pipeline(channels=8), np.arange(2), brightness, str(tmp_path), _digits(2))
    with pytest.raises(ValueError, match="reward or weights; other than here: reward"):
        raft(tiny_pipeline(channels=8), [0, 1], class_first, tmp_path, _digits(2))
    with pytest.raises(ValueError, match="other than here: unet"):
        raft(tiny_pipeline(channels=8, seed=1), [0, 1], brightness, tmp_path, _digits(2))


def _digits(stages: int) -> Plan:
    return Plan(stages=stages, samples=2, steps=2, batch=2, sampling={"num_inference_steps": 2})


def unet_of(**options):
    return UNet2DModel(
        sample_size=8, norm_num_groups=4, block_out_channels=(8,), down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",), **options,
    )  # fmt: skip


def test_a_unet_that_is_told_something_else():
    with pytest.raises(ValueError, match="is told no classes"):
        checked(DigitPipeline(unet_of(), DDIMScheduler()))
    with pytest.raises(ValueError, match="reads 9 channels and gives 3; expected 9 of both"):
        checked(DigitPipeline(unet_of(in_channels=9, num_class_embeds=2), DDIMScheduler()))
    pipeline = tiny_stable_diffusion()
    pipeline.unet.register_to_config(addition_embed_type="text_time")
    with pytest.raises(ValueError, match="'text_time' beside its prompts, as Stable Diffusion XL"):
        checked(pipeline)
    pipeline.vae.register_to_config(latent_channels=16)
    with pytest.raises(ValueError, match="reads 4 channels and gives 4; expected 16"):
        checked(pipeline)


@pytest.mark.parametrize("conditions", [[], "a cat", [0, 10], [-1], [True], [0.0], ["a cat"], [None]])
def test_bad_classes(conditions):
    with pytest.raises(ValueError, match=r"raft\(conditions="):
        checked_conditions(tiny_pipeline(channels=8), conditions)


def test_bad_prompts():
    with pytest.raises(ValueError, match=r"\[… 3 …\]\): the UNet is told prompts"):
        checked_conditions(tiny_stable_diffusion(), ["a cat", 3])


@pytest.mark.parametrize("options", [
    {"stages": 0}, {"steps": 1.5}, {"samples": True}, {"batch": "4"}, {"learning_rate": float("nan")},
    {"learning_rate": 0.0}, {"seed": -1}, {"sampling": {"output_type": "pil"}}, {"sampling": {"callback": print}},
])  # fmt: skip
def test_bad_plans(options):
    with pytest.raises(ValueError, match=rf"Plan\({next(iter(options))}="):
        Plan(**options)


def test_bad_images(tmp_path):
    pipeline, images = tiny_pipeline(channels=8), np.zeros((2, 8, 8, 1))
    with pytest.raises(ValueError, match=r"expected 3 images .* got shape \(2, 8, 8, 1\)"):
        checked_images(pipeline, images, 3)
    with pytest.raises(ValueError, match="got list"):
        checked_images(pipeline, [images], 1)
    with pytest.raises(ValueError, match="not finite"):
        checked_images(pipeline, images * np.nan, 2)


def test_scores_of_any_kind():
    images = np.zeros((2, 8, 8, 1), np.uint8)
    learned = torch.tensor([1.0, 2.0], requires_grad=True)
    assert checked_scores(lambda images, asked: learned, images, [0, 1]).tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match=r"expected 2 numbers, one per image \(could not convert"):
        checked_scores(lambda images, asked: ["good", "bad"], images, [0, 1])


def test_float16_is_not_trained(tmp_path):
    pipeline = tiny_stable_diffusion()
    pipeline.unet.half().requires_grad_(True)
    with pytest.raises(ValueError, match="would be trained in float16"):
        raft(pipeline, PROMPTS, brightness, tmp_path, PLAN)


@pytest.mark.parametrize("words", [["--prompts", "p"], ["--stable-diffusion", "m", "--reward", "r"]])
def test_flags_that_go_together(words, capsys):
    with pytest.raises(SystemExit):
        main(words)
    assert "go together" in capsys.readouterr().err


def test_the_digits_by_their_command(tmp_path, monkeypatch, capsys):
    """All arms, small; given again it takes all that is there and tells the same."""
    monkeypatch.setattr(raft_diffusion_digits, "MEASURED", 2)
    smaller = {"samples": 2, "steps": 1, "sampling": {"num_inference_steps": 1}}
    monkeypatch.setattr(raft_diffusion_digits, "SETTING", raft_diffusion_digits.SETTING | smaller)
    monkeypatch.setattr(raft_diffusion_digits, "ON_AND_ON", {"learning_rate": 1e-3})
    monkeypatch.setattr(raft_diffusion_digits, "TIMES", 2)
    begin = raft_diffusion_digits.begin
    monkeypatch.setattr(raft_diffusion_digits, "begin", lambda *args: begin(*args[:4], 1, args[5]))
    texts = []
    for _ in range(2):
        main(["--output-dir", str(tmp_path), "--seeds", "0", "1", "--stages", "1"])
        texts.append((tmp_path / "table.md").read_text(encoding="utf-8"))
    assert texts[0] == texts[1] and texts[0] in capsys.readouterr().out
    rows = [line.split(" | ")[0].strip("| ") for line in texts[0].splitlines()[2:]]
    assert rows[:5] == ["start", "random", "confidence", "ink", "ink, 2 stages, seed 0 alone"] and len(rows) == 8
    assert Image.open(tmp_path / "samples.png").size == (20 * 10 * 3, 5 * 10 * 3)
    assert stage_file(tmp_path / "ink-on-and-on-0", 1).exists() and not (tmp_path / "ink-on-and-on-1").exists()
