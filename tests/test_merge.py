"""A policy merged for serving: exact where arithmetic allows, loadable without peft or bitsandbytes, the base untouched."""

import shutil

import pytest
import torch
from peft import TaskType
from shared_case import BITS, base_path, lora, outputs
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_ext import SharedBase
from trl_ext.shared_base.adapter_files import saved_adapter
from trl_ext.shared_base.merge import unquantised_copy
from trl_ext.shared_base.shared_tree import quantised_linears


@pytest.fixture(scope="module", params=BITS, ids=lambda bits: f"{bits} bits")
def base(request, tmp_path_factory):
    return SharedBase.from_pretrained(base_path(tmp_path_factory.mktemp("merge")), bits=request.param)


@pytest.fixture
def adapter(base, tmp_path):
    torch.manual_seed(0)
    base.policy(lora(), name="trained").save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_the_merged_model_answers_as_the_adapter_does(base, adapter, tmp_path):
    before = outputs(base.model)
    merged = base.merge(adapter, tmp_path / "merged")
    plain = AutoModelForCausalLM.from_pretrained(merged.path)
    assert not quantised_linears(plain) and "quantization_config" not in plain.config.to_dict()
    policy = base.policy(init_from=adapter)
    exact = not any(hasattr(layer, "state") for layer in quantised_linears(base.model))
    kl = (
        outputs(policy).log_softmax(-1).exp() * (outputs(policy).log_softmax(-1) - outputs(plain).log_softmax(-1))
    ).sum(-1)
    assert kl.mean() < (1e-6 if exact else 5e-3)  # int8 also rounds what it multiplies
    assert merged.kl < 5e-3 and merged.agreement > 0.9
    assert torch.equal(outputs(base.model), before)
    assert AutoTokenizer.from_pretrained(merged.path)("hello")["input_ids"] == base.tokenizer("hello")["input_ids"]


def test_an_adapter_far_below_the_step_of_int8_survives(base, tmp_path):
    """Merged into int8 weights it would be rounded away (peft issue 1043)."""
    policy = base.policy(lora(), name="small")
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.mul_(1e-2)
    policy.save_pretrained(tmp_path / "small")
    plain = AutoModelForCausalLM.from_pretrained(base.merge(tmp_path / "small", tmp_path / "merged").path)
    without, exact = (unquantised_copy(base.model, torch.float32, torch.device("cpu")).eval() for _ in range(2))
    exact = saved_adapter(exact, tmp_path / "small", task=TaskType.CAUSAL_LM, call="", base=base.name)
    moved = (outputs(exact) - outputs(without)).abs().max()
    assert moved > 1e-3
    torch.testing.assert_close(outputs(plain), outputs(exact), atol=1e-2 * moved.item(), rtol=0)


def test_a_copy_shares_nothing(base):
    copy = unquantised_copy(base.model, torch.float32, torch.device("cpu"))
    before = outputs(base.model)
    with torch.no_grad():
        for tensor in (*copy.parameters(), *copy.buffers()):
            tensor.zero_()
    assert torch.equal(outputs(base.model), before)


def test_what_differs_is_said(base, adapter, tmp_path, monkeypatch):
    monkeypatch.setattr("trl_ext.shared_base.merge.LARGE_KL", -1.0)
    with pytest.warns(UserWarning, match=r"differ by .* nats per token and agree on .*\. Measure the merged model"):
        base.merge(adapter, tmp_path / "merged", texts=["hello"])


def test_no_adapter(base, tmp_path):
    with pytest.raises(ValueError, match=r"SharedBase\.merge\(…\): expected the folder or hub id of an adapter"):
        base.merge(tmp_path, tmp_path / "merged")


def test_a_file_is_no_folder(base, adapter, tmp_path):
    """transformers would log an error and go on."""
    (tmp_path / "out").write_text("mine")
    for output_dir in (tmp_path / "out", tmp_path / "out" / "below"):
        with pytest.raises(
            ValueError, match=r"SharedBase\.merge\(…\): expected a folder .*out' is a file\. Give another"
        ):
            base.merge(adapter, output_dir)
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("name", ["model.safetensors", "README.md", "adapter_config.json"])
def test_another_model_is_not_written_over(base, adapter, tmp_path, name):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / name).write_text("mine")
    with pytest.raises(ValueError, match=f"other' holds '{name}', which this run did not write and would write over"):
        base.merge(adapter, tmp_path / "other")
    assert [path.name for path in (tmp_path / "other").iterdir()] == [name]


def test_folders_and_hidden_files_are_no_model(base, adapter, tmp_path):
    (tmp_path / ".gitattributes").write_text("mine")
    assert base.merge(adapter, tmp_path, texts=["hello"]).path == str(
        tmp_path
    )  # the adapter is in a folder of its own
    assert (tmp_path / ".gitattributes").read_text() == "mine" and (tmp_path / "model.safetensors").is_file()


def test_only_the_same_merge_is_made_again(base, adapter, tmp_path, monkeypatch):
    merged = base.merge(adapter, tmp_path / "merged", texts=["hello"])
    assert base.merge(adapter, tmp_path / "merged", texts=["hello"]) == merged
    monkeypatch.chdir(tmp_path)
    assert base.merge("adapter", "merged", texts=["hello"]).kl == merged.kl
    shutil.copytree(adapter, tmp_path / "second")
    with pytest.raises(
        ValueError, match=r"merged' holds what another run has written \(adapter: 'adapter' then, 'sec"
    ):
        base.merge(tmp_path / "second", tmp_path / "merged")


def test_a_merge_that_is_refused_leaves_no_folder(base, tmp_path):
    with pytest.raises(ValueError, match="adapter"):
        base.merge(tmp_path, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
