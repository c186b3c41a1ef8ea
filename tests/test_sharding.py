"""Which engine spreads a model's weights, before and after a trainer has an accelerator, and who refuses it by its name."""

from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import FullyShardedDataParallelPlugin
from ppo_case import ppo_trainer
from self_training_case import trainer as raft_trainer
from test_imitation_reward_trainer import config, trainer_of
from tiny import byte_tokenizer, tiny_llama
from transformers.integrations import deepspeed as asked

from trl_ext import EndpointGenerator, TransformersGenerator, VLLMGenerator
from trl_ext.generation.protocol import passes_policy
from trl_ext.ppo.engine_checks import SETTINGS, refuse_early
from trl_ext.shared_base import shared_base
from trl_ext.trainer_kit import sharding
from trl_ext.trainer_kit.finite_findings import all_finite
from trl_ext.trainer_kit.fsdp_settings import of_plugin
from trl_ext.trainer_kit.loading import whole_loading
from trl_ext.trainer_kit.sharding import (
    SHARDING,
    but_for,
    but_fsdp2,
    check_uncut,
    copy_whole,
    engine_asked,
    own_part,
    refuse_engine,
    whole,
    whole_shape,
)
from trl_ext.trainer_kit.whole_copies import WholeCopy


@pytest.fixture
def launched(monkeypatch):
    """The environment of a process that `accelerate launch` has started, and that has no accelerator yet."""
    monkeypatch.setattr(AcceleratorState, "_shared_state", {})
    return lambda **said: [monkeypatch.setenv(name, value) for name, value in said.items()]


@pytest.mark.parametrize(
    ("said", "engine"),
    [
        ({}, None),
        ({"ACCELERATE_USE_FSDP": "false"}, None),
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP1"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "FSDP2"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM"),
    ],
)
def test_what_was_launched(launched, said, engine):
    launched(**said)
    assert engine_asked() == engine


def test_a_config_asks_first(launched):
    launched(ACCELERATE_USE_FSDP="true")
    assert engine_asked(SimpleNamespace(deepspeed="zero3.json", fsdp=None)) == "DeepSpeed"
    assert engine_asked(SimpleNamespace(deepspeed=None, fsdp=True)) == "FSDP"


@pytest.mark.parametrize(
    ("state", "engine"),
    [
        ({"distributed_type": "MULTI_GPU"}, None),
        ({"fsdp_plugin": SimpleNamespace(fsdp_version=2)}, "FSDP2"),
        ({"deepspeed_plugins": {"default": SimpleNamespace(zero_stage=3)}}, "DeepSpeed ZeRO-3"),
        ({"deepspeed_plugins": SimpleNamespace(zero_stage=2)}, "DeepSpeed ZeRO-2"),
        ({"distributed_type": "MEGATRON_LM"}, "Megatron-LM"),
        ({"parallelism_config": SimpleNamespace(tp_enabled=True)}, r"accelerate's parallelism_config (tp)"),
        (
            {
                "fsdp_plugin": SimpleNamespace(fsdp_version=2),
                "parallelism_config": SimpleNamespace(tp_enabled=False, cp_enabled=True),
            },
            r"accelerate's parallelism_config (cp)",
        ),
        (
            {
                "fsdp_plugin": SimpleNamespace(fsdp_version=2),
                "parallelism_config": SimpleNamespace(dp_replicate_enabled=True),
            },
            r"accelerate's parallelism_config (dp_replicate)",
        ),
        ({"parallelism_config": SimpleNamespace(dp_replicate_enabled=True)}, None),
        (
            {
                "deepspeed_plugins": {"default": SimpleNamespace(zero_stage=3)},
                "parallelism_config": SimpleNamespace(sp_enabled=True),
            },
            r"accelerate's parallelism_config (sp)",
        ),
    ],
)
def test_accelerates_state_knows_best(launched, monkeypatch, state, engine):
    """It is there before some trainers are, and tells whether what was asked for was to be had."""
    launched(ACCELERATE_USE_FSDP="true")
    monkeypatch.setattr(AcceleratorState, "_shared_state", state)
    assert engine_asked() == engine


def test_the_version_of_what_a_config_asks_for_is_in_the_state(launched, monkeypatch):
    fsdp = SimpleNamespace(deepspeed=None, fsdp=True)
    monkeypatch.setattr(AcceleratorState, "_shared_state", {"fsdp_plugin": SimpleNamespace(fsdp_version=2)})
    assert engine_asked(fsdp) == "FSDP2"
    assert engine_asked(SimpleNamespace(deepspeed="zero3.json", fsdp=None)) == "DeepSpeed"
    monkeypatch.setattr(AcceleratorState, "_shared_state", {"distributed_type": "MULTI_GPU"})
    assert engine_asked(fsdp) == "FSDP"


@pytest.mark.parametrize(
    ("said", "mode", "message"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "server", "PPOTrainer under DeepSpeed with use_vllm=True"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "colocate", "under FSDP2 with vllm_mode='colocate'"),
    ],
)
def test_ppo_refuses_before_trl_waits_for_vllm(launched, said, mode, message):
    launched(**said)
    args = SimpleNamespace(deepspeed=None, fsdp=None, use_vllm=True, vllm_mode=mode)
    with pytest.raises(ValueError, match=message):
        refuse_early(args)


def test_which_trainers_take_layers_that_stay_whole_between_passes():
    options = {"state_dict_type": "FULL_STATE_DICT", "auto_wrap_policy": "transformer_based_wrap"}
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, reshard_after_forward=False, **options)
    refused = (
        [came for is_so, came, *_ in of_plugin(plugin, **{"config": "X"} | how) if is_so] for how in ({}, SETTINGS)
    )
    assert [*refused] == [["fsdp_reshard_after_forward=false"], []]


def test_fsdp2_among_engines():
    assert [but_fsdp2(engine) for engine in ("FSDP", "FSDP2", None)] == [None] * 3
    assert [but_fsdp2(engine) for engine in ("FSDP1", "DeepSpeed ZeRO-2")] == ["FSDP1", "DeepSpeed ZeRO-2"]


def test_some_engines():
    assert [but_for(engine, *SHARDING) for engine in (None, "FSDP", "DeepSpeed", "DeepSpeed ZeRO-3")] == [None] * 4
    others = ["DeepSpeed ZeRO-0", "FSDP1", "Megatron-LM"]
    assert [but_for(engine, *SHARDING) for engine in others] == others


def test_a_refusal_names_the_engine_and_the_way_round():
    refuse_engine(None, trainer="X", why="y")
    with pytest.raises(
        ValueError, match=r"X runs on one device.*, not under DeepSpeed: y\. Launch it with .*--multi_gpu"
    ):
        refuse_engine("DeepSpeed", trainer="X", why="y")


@pytest.mark.parametrize(
    ("make", "name", "engine"),
    [
        (lambda folder, tokenizer: ppo_trainer(folder), "PPOTrainer", "Megatron-LM"),
        (lambda folder, tokenizer: raft_trainer(folder), "RAFTTrainer", "DeepSpeed"),
        (
            lambda folder, tokenizer: trainer_of(folder, tokenizer, args=config(folder)),
            "ImitationReward",
            "Megatron-LM",
        ),
    ],
)
def test_an_engine_is_refused_before_it_takes_the_weights(tmp_path, tokenizer, monkeypatch, make, name, engine):
    """ZeRO-3 leaves a trainer that is built empty tensors, so that it failed in them before it could say a word."""
    monkeypatch.setattr(sharding, "AcceleratorState", SimpleNamespace(_shared_state={}))
    monkeypatch.setattr(sharding, "LAUNCHED", {"LAUNCHED_SO": engine})  # whose own name transformers acts upon
    monkeypatch.setenv("LAUNCHED_SO", "true")
    monkeypatch.setattr("transformers.Trainer.__init__", lambda *args, **kwargs: pytest.fail("it was built"))
    with pytest.raises(ValueError, match=f"{name}.* runs on .*, not under {engine}: "):
        make(tmp_path, tokenizer)


def test_a_tensor_that_nobody_has_cut():
    parameter, values = torch.zeros(2, 3, requires_grad=True), torch.arange(6.0).view(2, 3)
    copy_whole(parameter, values)
    assert whole(parameter) is parameter and torch.equal(parameter, values)


def test_a_copy_without_weights():
    """As the model is: tied, with the methods of its class, and nothing to hold."""
    model = tiny_llama(byte_tokenizer(), tie_word_embeddings=True)
    model.forward = lambda *args, **kwargs: pytest.fail("the model's own, put on it")
    made = WholeCopy(model)
    assert made.copy.lm_head.weight is made.copy.get_input_embeddings().weight
    assert sum(parameter.numel() for parameter in made.copy.parameters()) == 0
    assert made.copy.forward.__func__ is type(model).forward


def test_a_model_that_nobody_cuts_needs_no_copy():
    with WholeCopy(model := tiny_llama(byte_tokenizer())).filled() as whole_model:
        assert whole_model is model


def test_who_needs_whole_weights():
    silent = SimpleNamespace(name="mine", generate=lambda *given: (), settings=dict)
    assert passes_policy(TransformersGenerator()) and passes_policy(VLLMGenerator()) and passes_policy(silent)
    assert not passes_policy(EndpointGenerator("a-model", "http://localhost/v1", "key"))


def test_a_piece_stands_for_a_tensor_that_zero_3_has_cut():
    """What stands in its place is empty, which would be finite, small, and like any other."""
    parameter = torch.nn.Parameter(torch.empty(0))
    assert own_part(parameter) is parameter and whole_shape(parameter) == [0]
    parameter.ds_tensor, parameter.ds_shape = torch.tensor([torch.nan]), torch.Size([2, 3])
    assert not all_finite([parameter]) and whole_shape(parameter) == [2, 3]
    model = torch.nn.ParameterList([parameter])
    check_uncut("its path", call="X")
    with pytest.raises(ValueError, match=r"X\(model=…\): DeepSpeed ZeRO-3 has cut it .*Give its path"):
        check_uncut(model, call="X(model=…)")


def test_a_shared_base_is_loaded_whole(monkeypatch):
    config = SimpleNamespace(is_zero3=lambda: True)
    monkeypatch.setattr(asked, "_hf_deepspeed_config_weak_ref", lambda: config)
    cuts = []

    def load(name, **options):
        cuts.append(asked.is_deepspeed_zero3_enabled())
        return tiny_llama(byte_tokenizer())

    monkeypatch.setattr(shared_base.AutoModelForCausalLM, "from_pretrained", load)
    shared_base.SharedBase.from_pretrained("x", tokenizer=byte_tokenizer())
    assert cuts == [False] and asked.is_deepspeed_zero3_enabled()


def test_models_are_loaded_whole_until_a_trainer_says_otherwise(monkeypatch):
    first, second = (lambda: SimpleNamespace(is_zero3=lambda: True) for _ in range(2))
    monkeypatch.setattr(asked, "_hf_deepspeed_config_weak_ref", first)
    with whole_loading():
        assert not asked.is_deepspeed_zero3_enabled()
    assert asked._hf_deepspeed_config_weak_ref is first
    with whole_loading():
        asked._hf_deepspeed_config_weak_ref = second
    assert asked._hf_deepspeed_config_weak_ref is second
