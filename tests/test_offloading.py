"""What is moved is checked by replacing every storage on the CPU; the card itself by tests marked gpu."""

import copy

import pytest
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from peft import LoraConfig, get_peft_model
from tiny import byte_tokenizer, tiny_llama
from torch import nn

from trl_ext.trainer_kit.offloading import off_the_card, replace_storages, tensor_slots


def quantised(kind, *, device="cpu", **options):
    """A small quantised layer between two plain ones, after its first call."""
    torch.manual_seed(0)
    layer = kind(64, 64, bias=False, **options)
    model = nn.Sequential(nn.Linear(64, 64), layer, nn.BatchNorm1d(64)).to(device).eval()
    model(torch.ones(2, 64, device=device))
    return model


KINDS = {
    "8-bit": lambda **on: quantised(Linear8bitLt, has_fp16_weights=False, threshold=6.0, **on),
    "4-bit": lambda **on: quantised(Linear4bit, quant_type="nf4", compress_statistics=True, **on),
}


@pytest.fixture(params=KINDS)
def model(request):
    return KINDS[request.param]()


def storages(model):
    return {getattr(*slot).untyped_storage().data_ptr() for slot in tensor_slots(model)}


def test_no_tensor_stays_behind(model):
    """After every slot has a new storage, nothing reachable from the model uses an old one."""
    x = torch.randn(3, 64)
    before, everything = model(x), reachable(model)
    old = [getattr(*slot) for slot in tensor_slots(model)]  # kept, or their memory would be used again
    replace_storages(tensor_slots(model), lambda storage, slot: storage.clone())
    assert everything and not everything & reachable(model)
    del old
    torch.testing.assert_close(model(x), before, rtol=0, atol=0)


def reachable(thing, seen=None):
    """Addresses of the memory of all tensors that can be reached from an object through attributes and containers."""
    seen = {} if seen is None else seen
    if id(thing) in seen or isinstance(thing, type | str | int | float | torch.dtype):
        return set()
    seen[id(thing)] = thing
    found = {thing.untyped_storage().data_ptr()} - {0} if isinstance(thing, torch.Tensor) else set()
    inner = list(thing.values()) if isinstance(thing, dict) else []
    inner += list(thing) if isinstance(thing, list | tuple | set) else []
    inner += list(getattr(thing, "__dict__", {}).values())
    return found.union(*(reachable(part, seen) for part in inner))


def test_tied_weights_stay_tied():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight.data = model[0].weight.data  # two parameters over one tensor
    view = model[0].weight.data[1:, :2]
    model.register_buffer("view", view)
    replace_storages(tensor_slots(model), lambda storage, slot: storage.clone())
    model[0].weight.data[1, 1] = 42.0
    assert model[1].weight[1, 1] == model.view[0, 1] == 42.0


def test_eight_bit_statistics_are_found_before_and_after_the_first_call():
    layer = Linear8bitLt(8, 8, bias=False, has_fp16_weights=False)
    layer = layer.to("cpu")
    layer.weight = layer.weight._quantize("cpu")
    names = lambda: sorted(name for _, name in tensor_slots(layer))  # noqa: E731
    assert names() == ["CB", "SCB", "data"]
    holders = {type(holder).__name__ for holder, name in tensor_slots(layer) if name != "data"}
    assert holders == {"Int8Params"}
    layer(torch.ones(1, 8, dtype=torch.float16))
    holders = {type(holder).__name__ for holder, name in tensor_slots(layer) if name != "data"}
    assert names() == ["CB", "SCB", "data"] and holders == {"MatmulLtState"}


def test_on_the_cpu_nothing_happens(model):
    before = storages(model)
    with off_the_card(model):
        assert storages(model) == before
    assert storages(model) == before


def test_adapters_and_buffers_are_among_the_slots():
    model = get_peft_model(tiny_llama(byte_tokenizer()), LoraConfig(r=2, target_modules=["q_proj"]))
    found = {id(holder) for holder, _ in tensor_slots(model)}
    assert {id(parameter) for parameter in model.parameters()} <= found
    assert {id(buffer) for buffer in model.buffers()} <= found and list(model.buffers())


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [*KINDS, "adapter"])
@pytest.mark.parametrize("fails", [False, True])
def test_card_and_back(kind, fails):
    if kind == "adapter":
        model = get_peft_model(tiny_llama(byte_tokenizer()).cuda(), LoraConfig(r=2, target_modules=["q_proj"]))
        x, call = torch.tensor([[5, 6, 7]], device="cuda"), lambda x: model(x).logits
    else:
        model, x = KINDS[kind](device="cuda"), torch.randn(3, 64, device="cuda")
        call = model
    before, weights = call(x), copy.deepcopy([getattr(*slot).cpu() for slot in tensor_slots(model)])
    places = [getattr(*slot).device for slot in tensor_slots(model)]
    held = torch.cuda.memory_allocated()
    try:
        with off_the_card(model):
            assert {getattr(*slot).device.type for slot in tensor_slots(model)} == {"cpu"}
            assert torch.cuda.memory_allocated() < held
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert [getattr(*slot).device for slot in tensor_slots(model)] == places
    for slot, weight in zip(tensor_slots(model), weights, strict=True):
        assert torch.equal(getattr(*slot).cpu(), weight)
    torch.testing.assert_close(call(x), before, rtol=0, atol=0)
