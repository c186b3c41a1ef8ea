"""What a card holds where FSDP2 cuts the weights: by hand, and beside two processes."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from two_processes import run_in_two

from trl_ext import memory_plan
from trl_ext.cli import main
from trl_ext.memory_planning import trainer_plan
from trl_ext.memory_planning.memory_terms import adapter_params
from trl_ext.memory_planning.model_shapes import ModelShape
from trl_ext.memory_planning.plan_sharding import COPY, GATHERED, REFERENCE, UNCUT, UNIT
from trl_ext.memory_planning.plan_training import gradient_bytes, training_moments

# 2 layers of 120 weights, of which its biases and norms are 10 of 20; 40 in the embedding, 40 in the head: 340
SHAPE = ModelShape("tiny", vocab=10, hidden=4, intermediate=6, layers=2, heads=2, kv_heads=1, head_dim=2)
CUT = {"shard": "fsdp2", "num_gpus": 4}
SIZES = {"batch": 2, "prompt_length": 3, "completion_length": 2, "device": "cpu"}


def terms(phase: str, method: str = "ppo", shape: ModelShape = SHAPE, **settings) -> dict[str, int]:
    return memory_plan(shape, method, **CUT | SIZES | settings).phases[phase].terms


def test_all_weights_by_hand():
    """Loaded in 16 bits, trained in fp32: 16 bytes a number over the cards, and what is whole for a while."""
    train = terms("train", lora=None, value_model=True)
    trunk = 340 - 40
    assert train["base weights"] == 4 * 340 / 4
    assert (
        train["other bases"] == (2 * 340 + 4 * trunk) / 4 + 2 * trunk
    )  # reference, critic; the reward model is whole
    assert train["adapters, heads"] == 4 * 4 / 4 + 4 * 4  # the critic's head, and the reward model's
    assert train["optimizer state"] == 8 * (340 + trunk + 4) / 4
    assert train[GATHERED] == 2 * (2 * (120 + 10) + 40 + 40)  # two layers, the vocabulary, the critic's embedding
    score = terms("score", lora=None)
    assert score[REFERENCE] == 2 * 340 and score[GATHERED] == 2 * (2 * (120 + 10) + 40)
    assert REFERENCE not in terms("score", lora=None, reference=False)


def test_adapters_by_hand():
    adapter = 4 * adapter_params(SHAPE, 1)
    train = terms("train", lora=1)
    assert train["base weights"] == 2 * 340 / 4
    assert train["other bases"] == 2 * 300  # a reward model's own, whole: one base for both is refused
    assert train["adapters, heads"] == (adapter + 16) / 4 + adapter + 16
    assert train["optimizer state"] == 2 * adapter / 4
    assert train[GATHERED] == 2 * (2 * (120 + adapter_params(SHAPE, 1) // 2 + 10) + 40)


def settings_of(**changes):
    return memory_plan(SHAPE, "sft", **CUT | SIZES | changes).settings


def test_gradients_wait_whole_between_micro_batches_unless_each_is_exchanged():
    """FSDP2 adds them up where they are made, in the precision of the passes, and cuts them after the last."""
    assert gradient_bytes(340, settings_of(lora=None)) == 2 * 340
    assert gradient_bytes(340, settings_of(lora=None, sync_each_batch=True)) == 4 * 340 / 4
    assert gradient_bytes(340, settings_of(lora=None, batch=1)) == 4 * 340 / 4
    assert gradient_bytes(340, settings_of(lora=None, dtype="float32")) == 4 * 340
    found = [moment.get(UNCUT) for moment in training_moments(SHAPE, settings_of(lora=None, batch=1))]
    assert 2 * 2 * (120 + 10) in found  # two layers, which are being exchanged
    assert not any(moment.get(UNCUT) for moment in training_moments(SHAPE, settings_of(lora=None)))


def test_raft_samples_from_a_whole_copy_and_ppo_layer_by_layer():
    adapter = 4 * adapter_params(SHAPE, 1)
    for phase in ("generate", "score"):
        assert terms(phase, "raft", lora=1)[COPY] == 2 * 340 + adapter and GATHERED not in terms(phase, "raft", lora=1)
        assert terms(phase, "raft", lora=None)[COPY] == 4 * 340
        assert COPY not in terms(phase, "grpo", lora=1) and terms(phase, "grpo", lora=1)[GATHERED] > 0
    assert COPY not in terms("train", "raft", lora=1)


def test_a_unit_is_whole_while_it_is_cut_and_all_is_read_before():
    load = terms("load", "sft", lora=None)
    assert load["base weights"] == 340 and load[UNIT] == 4 * 130
    assert memory_plan(SHAPE, "ppo", lora=None, value_model=True, **CUT).read_first == 2 * (340 + 340 + 300)
    assert memory_plan(SHAPE, "ppo", lora=1).read_first == 0


def test_more_cards_need_less_each_and_one_is_as_before():
    peaks = [memory_plan("llama-2-13b", "ppo", lora=None, shard="fsdp2", num_gpus=n).peak for n in (2, 4, 8, 16)]
    assert peaks == sorted(peaks, reverse=True) and len(set(peaks)) == 4
    assert memory_plan("llama-2-7b").phases == memory_plan("llama-2-7b", shared=True, num_gpus=1).phases


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_gpus": 4, "shard": None}, r"num_gpus=4, shard=None\): under data parallelism each card holds"),
        ({"num_gpus": 1}, r"shard='fsdp2', num_gpus=1\): expected several cards"),
        ({"num_gpus": 0}, r"num_gpus=0\): expected a whole number from 1 on"),
        ({"shard": "zero1"}, r"shard='zero1'\): expected one of None, ddp, fsdp2, zero2, zero3"),
        ({"bits": 8}, r"shard='fsdp2', bits=8\): the trainers refuse a base of 8 or 4 bits"),
        (
            {"shared": True},
            r"shared=True\): 2 roles on one SharedBase are refused: the base is cut as the part of one",
        ),
        ({"generator": "vllm"}, r"generator='vllm'\): a generator is given whole weights"),
        ({"optimizer": "adamw_8bit"}, r"optimizer='adamw_8bit'\): it was never tried"),
        ({"sync_each_batch": True, "batch": 1}, "it does nothing in a step of one micro-batch"),
        ({"sync_each_batch": True, "shard": None, "num_gpus": 1}, "it does nothing where nothing is cut"),
    ],
)
def test_what_cannot_be(changes, message):
    with pytest.raises(ValueError, match=rf"memory_plan\(.*{message}"):
        memory_plan(SHAPE, "ppo", **CUT | changes)


def test_what_is_refused_of_some_models_and_not_of_others():
    tied = ModelShape("tied", **{**vars_of(SHAPE), "tied": True})
    with pytest.raises(ValueError, match="the vocabulary head of tied is its embedding"):
        memory_plan(tied, "reward", imitation=True, **CUT)
    memory_plan(SHAPE, "reward", imitation=True, **CUT)
    memory_plan(SHAPE, "ppo", reward_models=0, shared=True, **CUT)  # one role
    with pytest.raises(ValueError, match=r"time_bound\(shard='fsdp2'\): how long cards exchange"):
        memory_plan("llama-2-7b", **CUT).time_bound("RTX 4090")


def vars_of(shape: ModelShape) -> dict:
    names = ("vocab", "hidden", "intermediate", "layers", "heads", "kv_heads", "head_dim")
    return {name: getattr(shape, name) for name in names}


def test_the_command(capsys):
    main(["plan", "llama-2-13b", "--num-gpus", "4", "--shard", "fsdp2", "--gpu", "80GB"])
    told = " ".join(capsys.readouterr().out.split())
    assert "each of 4 cards under FSDP2" in told and "80GB, 78.4 GiB: fits" in told
    assert "Each of the 4 processes first reads 24.2 GiB into the computer's memory." in told


def test_what_needs_less():
    """Gradients exchanged earlier; more cards; neither one shared base nor bits."""
    full = memory_plan("llama-2-13b", "sft", lora=None, **CUT)
    assert [one.flag for one in full.advice(60 * 2**30)] == ["--sync-each-batch"]
    assert [one.flag for one in full.advice(48 * 2**30)] == ["--lora 16"]
    wide = memory_plan("llama-3.1-70b", reward_models=0, shard="fsdp2", num_gpus=2)
    assert [one.config for one in wide.advice(60 * 2**30)] == ["accelerate launch --num_processes 4"]


@pytest.mark.parametrize(
    ("engine", "processes", "steps", "found"),
    [
        ("FSDP2", 4, 2, {**CUT, "sync_each_batch": True}),
        ("FSDP2", 4, 1, {**CUT, "sync_each_batch": False}),
        ("FSDP2", 1, 2, {}),
        (None, 4, 2, {"shard": "ddp", "num_gpus": 4}),
    ],
)
def test_a_trainer_says_how_its_run_is_cut(engine, processes, steps, found, monkeypatch):
    monkeypatch.setattr(trainer_plan, "engine_asked", lambda args: engine)
    accumulation = SimpleNamespace(gradient_accumulation_kwargs={"sync_each_batch": True})
    args = SimpleNamespace(world_size=processes, gradient_accumulation_steps=steps, accelerator_config=accumulation)
    assert trainer_plan.cut_settings(args) == found


@pytest.mark.parametrize("engine", ["DeepSpeed ZeRO-1", "Megatron-LM", "FSDP1"])
def test_no_plan_is_better_than_that_of_one_card(engine, monkeypatch):
    monkeypatch.setattr(trainer_plan, "engine_asked", lambda args: engine)
    assert trainer_plan.cut_settings(SimpleNamespace(world_size=1)) == {}
    with pytest.raises(ValueError, match=f"memory_plan: what {engine} leaves on each card is not counted"):
        trainer_plan.cut_settings(SimpleNamespace(world_size=4))


RUNS = {
    "head": {"kind": "head", "full": True, "per_device_train_batch_size": 4},
    "model": {"kind": "model", "full": True, "per_device_train_batch_size": 4},
    "accumulated": {"kind": "head", "full": True, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_the_shares_are_what_two_processes_have(name, tmp_path):
    """Of small tensors FSDP2 pads what does not divide; gathered weights and activations are not looked at."""
    done = run_in_two(Path(__file__).parent / "plan_sharded_case.py", tmp_path, json.dumps(RUNS[name]))
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads((tmp_path / "told.json").read_text())
    seen, plan = told["seen"], told["plan"]
    assert told["cards"] == 2
    kept = seen["weights"] + seen["reference"]
    assert kept == pytest.approx(plan["base weights"] + plan["other bases"] + plan["adapters, heads"], rel=0.01)
    assert seen["states"] == pytest.approx(plan["optimizer state"], rel=0.01)
    assert seen["gradients"] == pytest.approx(seen["states"] / 2)
    if name == "accumulated":
        assert (
            seen["waiting"] == pytest.approx(plan["gradients"], rel=0.01)
            and plan["gradients"] > 1.9 * seen["gradients"]
        )
