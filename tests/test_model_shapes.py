"""Shapes against published totals, against what transformers builds, and bad configurations."""

import json

import pytest
import torch
from tiny import byte_tokenizer, tiny_llama
from transformers import AutoConfig, AutoModelForCausalLM, BartConfig, LlamaConfig, WhisperConfig

from trl_ext.memory_planning.model_shapes import BUILT_IN, ModelShape, shape_of

PUBLISHED = {
    "llama-2-7b": 6_738_415_616,
    "mistral-7b": 7_241_732_096,
    "llama-3.1-8b": 8_030_261_248,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-8b": 8_190_735_360,
    "gemma-2-9b": 9_241_705_984,
    "llama-2-13b": 13_015_864_320,
    "llama-3.1-70b": 70_553_706_496,
}


@pytest.mark.parametrize("name", BUILT_IN)
def test_parameters_are_as_published_and_as_transformers_builds_them(name):
    fields = dict(BUILT_IN[name])
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert shape_of(name).params == PUBLISHED[name] == model.num_parameters()
    assert shape_of(config).params == PUBLISHED[name]


def test_a_path_a_config_a_model_and_its_file_are_one_shape(tmp_path):
    model = tiny_llama(byte_tokenizer())
    model.save_pretrained(tmp_path)
    shapes = [shape_of(source) for source in (tmp_path, str(tmp_path / "config.json"), model, model.config)]
    assert {(shape.hidden, shape.layers, shape.head_dim, shape.vocab) for shape in shapes} == {(16, 2, 8, 259)}
    assert shapes[0].params == model.num_parameters()


def test_windows_by_architecture():
    assert set(shape_of("mistral-7b").windows) == {4096}
    assert shape_of("gemma-2-9b").windows[:2] == (4096, None)  # every other layer
    assert set(shape_of("llama-2-7b").windows) == {None}
    late = BUILT_IN["qwen2.5-7b"] | {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 27}
    assert shape_of(late).windows[-2:] == (None, 8)


def test_what_is_no_decoder_of_text_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no_such_kind", "hidden_size": 8}))
    with pytest.raises(ValueError, match=r"transformers makes no configuration of it .*no_such_kind.*Mend its config"):
        shape_of(tmp_path / "config.json")
    with pytest.raises(ValueError, match=r"makes no configuration of it"):
        shape_of({"hidden_size": 8})
    with pytest.raises(ValueError, match=r"without \['vocab_size'"):
        shape_of({"model_type": "llama"})
    with pytest.raises(ValueError, match=r"memory_plan\(model='t5'\): .*'t5' is an encoder–decoder. Give a causal"):
        shape_of({"model_type": "t5"}, call="memory_plan")
    for config in (BartConfig(), WhisperConfig()):
        with pytest.raises(ValueError, match=r"is an encoder–decoder"):
            shape_of(config)
    for kind in ("bert", "roberta"):
        with pytest.raises(ValueError, match=rf"'{kind}' is an encoder\."):
            shape_of({"model_type": kind})
    with pytest.raises(ValueError, match=r"'vit' has no causal language model"):
        shape_of({"model_type": "vit"})
    for bad in ({"hidden_size": "x"}, {"hidden_size": None}, {"layer_types": "x"}):
        with pytest.raises(ValueError, match=r"model='olmo2'\): transformers makes no configuration of it"):
            shape_of({"model_type": "olmo2"} | bad)
    with pytest.raises(ValueError, match=r"makes no configuration of it"):
        shape_of({"model_type": ["llama"]})
    with pytest.raises(ValueError, match=r"found no list of layers in Olmo2ForCausalLM"):
        shape_of({"model_type": "olmo2", "num_hidden_layers": 0})
    with pytest.raises(ValueError, match=r"cannot build 'olmo2' from this configuration \(.*\). Mend its config"):
        shape_of(AutoConfig.for_model("olmo2", hidden_size=7, num_attention_heads=0))


def test_bad_input():
    with pytest.raises(ValueError, match=r"model='no-such-model'.*llama-2-7b"):
        shape_of("no-such-model")
    with pytest.raises(ValueError, match=r"model=int.*expected a name"):
        shape_of(3)
    with pytest.raises(ValueError, match=r"whole numbers from 1 on, got {'num_hidden_layers': -1}"):
        shape_of(BUILT_IN["llama-2-7b"] | {"num_hidden_layers": -1})


def test_a_shape_and_a_configuration_without_optional_fields():
    shape = ModelShape("mine", vocab=5, hidden=4, intermediate=6, layers=1, heads=2, kv_heads=1, head_dim=2)
    assert shape_of(shape) is shape
    # q 4×4, k and v 4×2, o 4×4, three of 4×6, two norms and the last one, embedding and head
    assert shape.params == 16 + 8 + 8 + 16 + 72 + 12 + 20 + 20
    assert shape_of(LlamaConfig(num_attention_heads=32, hidden_size=4096)).kv_heads == 32


@pytest.mark.parametrize(
    ("text", "message"), [("[1]", "an object with the fields of a model, got a list"), ("{", "it is no JSON")]
)
def test_a_file_that_is_no_config(tmp_path, text, message):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        shape_of(str(tmp_path / "x.json"), call="memory_plan")
