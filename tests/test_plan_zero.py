"""What a card holds under DDP and DeepSpeed: by hand, and beside two processes."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate.state import AcceleratorState
from test_plan_sharding import SHAPE, SIZES, vars_of
from two_processes import run_in_two

from trl_ext import memory_plan
from trl_ext.memory_planning import trainer_plan
from trl_ext.memory_planning.memory_terms import adapter_params
from trl_ext.memory_planning.model_shapes import ModelShape
from trl_ext.memory_planning.plan_sharding import REFERENCE
from trl_ext.memory_planning.plan_training import sharded_moments
from trl_ext.memory_planning.plan_zero import BUFFERS, COPY, DDP, GATHERED, MASTER, REDUCED, STEPPED, UNCUT
from trl_ext.self_training import self_training_engines
from trl_ext.trainer_kit.sharding import refuse_engine

BUCKET = {"reduce_bucket_size": 100}
TRUNK, HEAD = 340 - 40, 4  # of `SHAPE`, whose largest tensor has 40 numbers


def plan(shard: str, method: str = "ppo", *, num_gpus: int = 4, **settings):
    bucket = {} if shard == "ddp" else BUCKET
    return memory_plan(
        SHAPE, method, **SIZES | bucket | {"shard": shard, "num_gpus": num_gpus, "reward_models": 0} | settings
    )


def terms(phase: str, shard: str, **settings) -> dict[str, int]:
    return plan(shard, **settings).phases[phase].terms


def moments(shard: str, **settings) -> list[dict[str, int]]:
    return sharded_moments(SHAPE, plan(shard, **settings).settings)


def test_zero_2_holds_whole_weights_by_hand():
    """In 16 bits; master weights and Adam's means in fp32, over the cards."""
    train, trained = terms("train", "zero2", lora=None, value_model=True), 340 + TRUNK + HEAD
    assert train["base weights"] == 2 * 340
    assert train["other bases"] == 2 * 340 + 2 * TRUNK  # reference, critic
    assert train["adapters, heads"] == 2 * HEAD
    assert train[MASTER] == 4 * trained / 4 and train["optimizer state"] == 8 * trained / 4
    assert GATHERED not in train and COPY not in terms("generate", "zero2", lora=None)
    during = moments("zero2", lora=None, value_model=True)[0]
    assert (
        during[BUFFERS] == 2 * (2 * trained / 4) + 2 * 100 and during[UNCUT] == 2 * 40
    )  # a step of two micro-batches
    assert moments("zero2", lora=None, value_model=True, batch=1)[0][BUFFERS] == 2 * trained / 4 + 2 * 100
    assert moments("zero2", lora=None, value_model=True)[-1] == {STEPPED: (2 + 2 + 4) * trained / 4}
    assert moments("zero2", lora=None, dtype="float32", value_model=True)[-1] == {STEPPED: (4 + 4) * trained / 4}


def test_zero_3_cuts_all_and_samples_from_all_by_hand():
    train, numbers = terms("train", "zero3", lora=None, value_model=True), 340 + TRUNK
    trained = numbers + HEAD
    assert train["base weights"] == 2 * 340 / 4 and train["other bases"] == (2 * 340 + 2 * TRUNK) / 4
    assert train[MASTER] == 4 * trained / 4 and train["optimizer state"] == 8 * trained / 4
    assert train[BUFFERS] == 2 * trained / 4 + 2 * 100
    assert train[GATHERED] == 2 * numbers
    assert terms("train", "zero3", lora=None, value_model=True, max_live_parameters=50)[GATHERED] == 2 * 50
    sampling = terms("generate", "zero3", lora=None, value_model=True, max_live_parameters=50)
    assert sampling[COPY] == 2 * numbers and GATHERED not in sampling
    assert terms("score", "zero3", lora=None)[REFERENCE] == 2 * 340
    during, *_, exchange, step = moments("zero3", lora=None, value_model=True)
    assert exchange == {REDUCED: 2 * 100} and step == {STEPPED: (2 + 4) * trained / 4}
    assert during[REDUCED] == 2 * 100 and during[UNCUT] == 2 * 40  # more is trained than a bucket takes
    assert moments("zero3", lora=None, reduce_bucket_size=1000)[0][REDUCED] == 0


def test_adapters_are_cast_and_cut_like_all_that_is_trained():
    adapter = adapter_params(SHAPE, 1)
    train = terms("train", "zero2", lora=1)
    assert train["base weights"] == 2 * 340 and train["adapters, heads"] == 2 * adapter + 2 * HEAD
    assert train[MASTER] == 4 * adapter / 4 and train["optimizer state"] == 8 * adapter / 4
    third = terms("train", "zero3", lora=1)
    assert third["base weights"] == 2 * 340 / 4 and third["adapters, heads"] == (2 * adapter + 2 * HEAD) / 4
    assert third[GATHERED] == 2 * (340 + adapter)


def test_what_is_trained_in_16_bits_over_fp32_is_cast():
    """And a reward model beside is not."""
    loaded = {"lora": None, "dtype": "float32", "reward_models": 1}
    cast, whole = (terms("train", "zero2", autocast=autocast, **loaded) for autocast in (True, False))
    assert (cast["base weights"], whole["base weights"]) == (2 * 340, 4 * 340)
    assert cast["other bases"] == 2 * 340 + 4 * TRUNK and whole["other bases"] == 4 * 340 + 4 * TRUNK
    assert cast[MASTER] == whole[MASTER] == 4 * 340 / 4


def test_under_ddp_each_card_has_what_one_alone_has_and_buckets():
    for settings in ({"lora": None}, {"lora": 1, "value_model": True}, {"lora": 1, "bits": 8}):
        alone = memory_plan(SHAPE, "ppo", **SIZES | {"reward_models": 0} | settings)
        each = plan("ddp", **settings)
        trained = each.phases["train"].terms.pop(DDP) if "bits" in settings else None
        if trained is None:
            expected = 2 * 340 if settings["lora"] is None else 4 * (2 * adapter_params(SHAPE, 1) + HEAD)
            assert each.phases["train"].terms[DDP] == expected
        for name, phase in alone.phases.items():
            assert {k: v for k, v in each.phases[name].terms.items() if k != DDP} == phase.terms


@pytest.mark.parametrize("lora", [None, 16])
def test_more_is_cut_from_ddp_to_zero_2_to_zero_3(lora):
    """In training; where PPO samples ZeRO-3 has all weights beside its part, and its bucket."""
    settings = {"lora": lora, "num_gpus": 8, "reward_models": 0, "shared": False}
    found = [memory_plan("llama-2-13b", shard=shard, **settings).phases for shard in ("ddp", "zero2", "zero3")]
    sizes = [phases["train"].bytes for phases in found]
    assert sizes == sorted(sizes, reverse=True) and sizes[1] > sizes[2]
    assert found[2]["generate"].terms[COPY] >= found[0]["generate"].terms["base weights"]
    if lora is None:
        assert sizes[0] > sizes[1]
    for shard in ("zero2", "zero3"):
        peaks = [
            memory_plan("llama-2-13b", shard=shard, **settings | {"num_gpus": n}).phases["train"].bytes
            for n in (2, 4, 8)
        ]
        assert peaks == sorted(peaks, reverse=True) and peaks[0] > peaks[2]


def test_one_process_is_planned_as_it_was():
    assert trainer_plan.cut_settings(SimpleNamespace(world_size=1)) == {}
    assert memory_plan(SHAPE, "ppo", shard=None).phases == memory_plan(SHAPE, "ppo").phases


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("ppo", {"num_gpus": 1}, r"shard='zero2', num_gpus=1\): expected several cards"),
        ("ppo", {"bits": 8}, r"bits=8\): the trainers refuse a base of 8 or 4 bits"),
        ("ppo", {"shared": True, "reward_models": 1}, "2 roles on one SharedBase are refused"),
        ("ppo", {"generator": "vllm"}, "a generator is given whole weights"),
        ("ppo", {"sync_each_batch": True}, "FSDP2 alone keeps whole gradients"),
        ("ppo", {"max_live_parameters": 5}, r"max_live_parameters=5\): nothing reads it there"),
        ("ppo", {"reduce_bucket_size": 0}, r"reduce_bucket_size=0\): expected a whole number from 1 on"),
        ("ppo", {"shard": "ddp"}, r"reduce_bucket_size=100\): nothing reads it there"),
        ("sft", {"imitation_head": True}, r"imitation_head=True\): expected False, since nothing is imitated"),
        ("ppo", {"generator": "endpoint"}, "it learns from what its own policy samples"),
        ("ppo", {"policy_passes": True}, r"policy_passes=True\): expected False, since the policy samples itself"),
    ],
)
def test_what_cannot_be(method, changes, message):
    with pytest.raises(ValueError, match=rf"memory_plan\(.*{message}"):
        memory_plan(SHAPE, method, **{"shard": "zero2", "num_gpus": 2, "reward_models": 0} | BUCKET | changes)


@pytest.mark.parametrize(("method", "trainer"), [("raft", "RAFTTrainer"), ("rest", "ReSTTrainer")])
@pytest.mark.parametrize(("shard", "engine"), [("zero2", "DeepSpeed ZeRO-2"), ("zero3", "DeepSpeed ZeRO-3")])
def test_what_a_trainer_refuses_is_refused_in_its_words(method, trainer, shard, engine):
    with pytest.raises(ValueError) as theirs:
        refuse_engine(engine, trainer=trainer, **self_training_engines.REFUSAL)
    with pytest.raises(ValueError) as ours:
        memory_plan(SHAPE, method, shard=shard, num_gpus=2)
    assert str(ours.value) == f"memory_plan(method={method!r}, shard={shard!r}): {theirs.value}"


def test_raft_is_counted_by_who_samples():
    """Under FSDP2 the whole copy is for those that pass the policy; a server's samples need none."""
    cut = {"shard": "fsdp2", "lora": 1, "method": "raft"}
    own, served, passed = (plan(**cut, **other, reduce_bucket_size=500_000_000) for other in (
        {}, {"generator": "endpoint"}, {"generator": "file", "policy_passes": True}
    ))  # fmt: skip
    copy = 2 * 340 + 4 * adapter_params(SHAPE, 1)
    assert own.phases["generate"].terms[COPY] == passed.phases["score"].terms[COPY] == copy
    assert own.phases == passed.phases
    for phase in ("generate", "score"):
        assert COPY not in served.phases[phase].terms and "KV cache" not in served.phases["generate"].terms
    assert served.phases["train"] == own.phases["train"]
    alone = memory_plan(SHAPE, "raft", generator="endpoint", **SIZES)
    assert (
        "KV cache" not in alone.phases["generate"].terms
        and alone.phases["train"] == memory_plan(SHAPE, "raft", **SIZES).phases["train"]
    )


def test_vllm_under_fsdp2_has_its_turn_behind_the_whole_copy():
    """Which waits meanwhile, and is there again for the scores; the parts stay."""
    settings = {"shard": "fsdp2", "lora": 1, "device": "cuda", "generator": "vllm", "reduce_bucket_size": 500_000_000}
    found, copy = plan(method="raft", **settings), 2 * 340 + 4 * adapter_params(SHAPE, 1)
    assert found.phases["generate"].terms["base weights"] == 2 * 340 / 4 and COPY not in found.phases["generate"].terms
    assert found.phases["score"].terms[COPY] == copy and found.waiting["policy's weights"] == copy


def test_a_head_of_its_own_lets_a_tied_reward_model_be_cut():
    tied = ModelShape("tied", **{**vars_of(SHAPE), "tied": True})
    for shard in ("fsdp2", "zero3"):
        cut = {"imitation": True, "shard": shard, "num_gpus": 2}
        with pytest.raises(
            ValueError, match=r"the embedding.*|is its embedding, which FSDP and ZeRO-3 cut into pieces. Give"
        ):
            memory_plan(tied, "reward", **cut)
        assert (
            memory_plan(tied, "reward", imitation_head=True, **cut).phases["train"].terms["imitation head"] == 2 * 40
        )
    assert (
        "imitation head"
        not in memory_plan(tied, "reward", imitation=True, shard="zero2", num_gpus=2).phases["train"].terms
    )


def plugin(stage: int, **sizes) -> SimpleNamespace:
    return SimpleNamespace(zero_stage=stage, deepspeed_config={"zero_optimization": {"stage": stage} | sizes})


@pytest.mark.parametrize(
    ("stage", "sizes", "found"),
    [
        (2, {}, {}),
        (2, {"reduce_bucket_size": 2e8, "stage3_max_live_parameters": 7}, {"reduce_bucket_size": 200_000_000}),
        (3, {"reduce_bucket_size": "auto", "stage3_max_live_parameters": 1e8}, {}),
        (
            3,
            {"stage3_max_live_parameters": 1e8, "stage3_max_reuse_distance": 2e8},
            {"max_live_parameters": 200_000_000},
        ),
    ],
)
def test_a_trainer_says_what_deepspeeds_config_says(stage, sizes, found, monkeypatch):
    monkeypatch.setattr(trainer_plan, "engine_asked", lambda args: f"DeepSpeed ZeRO-{stage}")
    monkeypatch.setitem(AcceleratorState._shared_state, "deepspeed_plugins", {"default": plugin(stage, **sizes)})
    expected = {"shard": f"zero{stage}", "num_gpus": 4} | found
    assert trainer_plan.cut_settings(SimpleNamespace(world_size=4)) == expected


@pytest.mark.parametrize(("asked", "found"), [("DeepSpeed", "zero3"), ("FSDP", "fsdp2")])
def test_a_dry_run_knows_it_before_accelerate_does(asked, found, monkeypatch):
    monkeypatch.setattr(trainer_plan, "engine_asked", lambda args: asked)
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.delitem(AcceleratorState._shared_state, "deepspeed_plugins", raising=False)
    args = SimpleNamespace(
        world_size=2, deepspeed_plugin=plugin(3), gradient_accumulation_steps=1, accelerator_config=SimpleNamespace()
    )
    assert trainer_plan.cut_settings(args)["shard"] == found


def test_what_needs_less():
    found = memory_plan("llama-2-13b", "sft", lora=None, shard="zero3", num_gpus=8)
    told = found.advice(found.peak)
    assert told[0].flag == "--reduce-bucket-size 50000000" and '"reduce_bucket_size": 50000000' in told[0].config


RUNS = {
    "head": {"kind": "head", "full": True},
    "model, accumulated": {"kind": "model", "full": True, "gradient_accumulation_steps": 2},
    "adapters": {"kind": "model", "full": False},
    "16 bits": {"kind": "head", "full": True, "bf16": True},
    "reward model": {"method": "reward", "full": True},
}
RESTING = ("base weights", "other bases", "adapters, heads", "imitation head", "optimizer state", MASTER)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs DeepSpeed")
@pytest.mark.parametrize("engine", ["ZeRO-2", "ZeRO-3"])
@pytest.mark.parametrize("name", RUNS)
def test_it_is_what_two_processes_have(name, engine, tmp_path):
    """All storages of a process at rest, and while it steps, within 1 %; and never more than the plan's peak by more than 2 %."""
    options = {"per_device_train_batch_size": 4 // RUNS[name].get("gradient_accumulation_steps", 1)} | RUNS[name]
    done = run_in_two(Path(__file__).parent / "plan_zero_case.py", tmp_path, json.dumps(options), engine)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads((tmp_path / "told.json").read_text())
    seen, plan = told["seen"], told["plan"]
    assert told["settings"] == {"shard": engine.lower().replace("-", ""), "num_gpus": 2, "reduce_bucket_size": 50_000}
    rest = sum(plan.get(term, 0) for term in (*RESTING, *((BUFFERS,) if engine == "ZeRO-3" else ())))
    # the plan leaves out the copy of an adapter that came as one, which is the reference's
    assert seen["rest"] == pytest.approx(rest, rel=0.02 if name == "adapters" else 0.01)
    copies = 4 + ((2 if "bf16" in options else 4) if engine == "ZeRO-2" else 0)  # by then
    stepping = rest + copies * plan[MASTER] / 4
    assert seen["step"] < 1.02 * stepping  # a value model is stepped behind the policy, and makes its copy then
    assert seen["step"] == pytest.approx(stepping, rel=0.1 if options.get("kind") == "model" else 0.01)
    assert max(seen.values()) < 1.02 * sum(plan.values())


@pytest.mark.slow
def test_ddp_keeps_all_gradients_once_more(tmp_path):
    options = {"kind": "head", "full": True, "per_device_train_batch_size": 4}
    done = run_in_two(Path(__file__).parent / "plan_zero_case.py", tmp_path, json.dumps(options), "DDP")
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads((tmp_path / "told.json").read_text())
    policy = sum(map(int, told["buckets"].split(",")))
    assert told["settings"]["shard"] == "ddp" and policy == pytest.approx(told["plan"][DDP], rel=0.01)
