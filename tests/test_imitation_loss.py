import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from trl_ext.reward_modeling import imitation_loss
from trl_ext.reward_modeling.imitation_loss import completion_nll, completion_targets
from trl_ext.reward_modeling.vocabulary_head import VocabularyHead


def test_nll_by_hand():
    # W = [0, ln 3], so a state of 1 gives logits [0, ln 3] and probabilities [1/4, 3/4]; of 0, [1/2, 1/2]
    head = VocabularyHead(torch.tensor([[0.0], [math.log(3)]]))
    states = torch.tensor([[[1.0], [0.0], [9.0]], [[1.0], [9.0], [9.0]]])
    ids = torch.tensor([[7, 1, 0], [7, 0, 5]])
    targets = torch.tensor([[False, True, True], [False, True, False]])
    # row 1: −ln ¾ for token 1 after state 1, −ln ½ for token 0 after state 0; row 2: −ln ¼ for token 0 after state 1
    expected = torch.tensor([math.log(4 / 3), math.log(2), math.log(4)])
    torch.testing.assert_close(completion_nll(states, ids, targets, head), expected)


def test_bias_and_scale_by_hand():
    # logits = 2 · (0 · h + [0, ½ ln 3]) = [0, ln 3], whatever the state
    head = VocabularyHead(torch.zeros(2, 1), torch.tensor([0.0, math.log(3) / 2]), scale=2.0)
    nll = completion_nll(torch.ones(1, 2, 1), torch.tensor([[0, 1]]), torch.tensor([[False, True]]), head)
    torch.testing.assert_close(nll, torch.tensor([math.log(4 / 3)]))


def test_equals_cross_entropy_of_whole_logits():
    states, ids = torch.randn(3, 9, 8), torch.randint(50, (3, 9))
    head = VocabularyHead(torch.randn(50, 8), torch.randn(50), scale=0.25)
    targets = torch.rand(3, 9) < 0.5
    targets[:, 0] = False
    logits = 0.25 * (states @ head.weight.T + head.bias)
    whole = nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    torch.testing.assert_close(completion_nll(states, ids, targets, head), whole[targets[:, 1:]])


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_gradient_is_that_of_whole_logits(monkeypatch, scale):
    """In chunks of five labels, each of which counts differently."""
    monkeypatch.setattr(imitation_loss, "CHUNK_LOGITS", 5 * 50)
    states, ids = torch.randn(3, 9, 8, requires_grad=True), torch.randint(50, (3, 9))
    head = VocabularyHead(torch.randn(50, 8), torch.randn(50), scale=scale)
    targets = completion_targets(torch.ones(3, 9), torch.tensor([0, 1, 4]))
    logits = scale * (states[:, :-1] @ head.weight.T + head.bias)
    whole = nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")[targets[:, 1:]]
    counts = torch.linspace(0.1, 1.0, len(whole))
    (expected,) = torch.autograd.grad((whole * counts).sum(), states)
    (found,) = torch.autograd.grad((completion_nll(states, ids, targets, head) * counts).sum(), states)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("trains", "products"), [(True, 2), (False, 1)])
def test_costs_two_products_with_the_head_and_one_in_evaluation(trains, products):
    states = torch.randn(2, 21, 8, requires_grad=trains)
    targets = completion_targets(torch.ones(2, 21), torch.tensor([1, 1]))
    with FlopCounterMode(display=False) as counter:
        nll = completion_nll(states, torch.zeros(2, 21, dtype=torch.long), targets, HEAD).sum()
        _ = nll.backward() if trains else None
    assert counter.get_total_flops() == products * 2 * 40 * 50 * 8  # of 40 labels with 50 × 8 weights


def test_under_autocast_it_multiplies_in_half_precision():
    """As the model's own head would; states and their gradient stay in float32."""
    torch.manual_seed(0)
    states, ids = torch.randn(2, 40, 8, requires_grad=True), torch.randint(50, (2, 40))
    targets = completion_targets(torch.ones(2, 40), torch.tensor([3, 3]))
    exact = completion_nll(states, ids, targets, HEAD)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        nll = completion_nll(states, ids, targets, HEAD)
    assert nll.dtype == torch.float32 and not torch.equal(nll, exact)
    torch.testing.assert_close(nll, exact, atol=0.02 * exact.abs().max().item(), rtol=0)
    (found,), (expected,) = (torch.autograd.grad(loss.mean(), states) for loss in (nll, exact))
    torch.testing.assert_close(found, expected, atol=0.02 * expected.abs().max().item(), rtol=0)


def test_step_against_gradient_raises_likelihood_and_leaves_head():
    states, ids = torch.randn(1, 6, 8, requires_grad=True), torch.randint(50, (1, 6))
    weight = nn.Parameter(torch.randn(50, 8))
    targets = completion_targets(torch.ones(1, 6), torch.tensor([2]))
    before = completion_nll(states, ids, targets, VocabularyHead(weight))
    before.sum().backward()
    after = completion_nll(states - 0.01 * states.grad, ids, targets, VocabularyHead(weight))
    assert (after < before).all()  # −log p falls for each token
    assert weight.grad is None
    assert states.grad[0, 0].abs().sum() == 0 and states.grad[0, -1].abs().sum() == 0  # state 2 of the prompt predicts


@pytest.mark.parametrize("padded", [[1, 1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 0]])
def test_padding_side_changes_nothing(padded):
    states, ids = torch.randn(1, 5, 8), torch.randint(50, (1, 5))
    head = VocabularyHead(torch.randn(50, 8))
    alone = completion_nll(states, ids, completion_targets(torch.ones(1, 5), torch.tensor([2])), head)

    mask = torch.tensor([padded])
    wide_states, wide_ids = torch.full((1, 7, 8), 1e3), torch.full((1, 7), 49)
    wide_states[mask.bool()], wide_ids[mask.bool()] = states[0], ids[0]
    wide = completion_nll(wide_states, wide_ids, completion_targets(mask, torch.tensor([2])), head)

    assert len(alone) == 3
    torch.testing.assert_close(wide, alone)


def test_eos_is_a_target_even_where_it_is_the_pad_token():
    eos = pad = 1
    ids = torch.tensor([[5, 6, 7, eos, pad, pad]])
    targets = completion_targets(torch.tensor([[1, 1, 1, 1, 0, 0]]), torch.tensor([2]))
    assert ids[targets].tolist() == [7, eos]


def test_first_token_has_nothing_before_it():
    assert completion_targets(torch.ones(1, 3), torch.tensor([0])).tolist() == [[False, True, True]]


def test_batch_without_targets_is_zero_not_nan():
    states = torch.randn(2, 4, 8, requires_grad=True)
    nll = completion_nll(states, torch.zeros(2, 4, dtype=torch.long), torch.zeros(2, 4, dtype=torch.bool), HEAD)
    nll.sum().backward()
    assert nll.shape == (0,) and nll.sum() == 0 and states.grad.abs().sum() == 0


HEAD = VocabularyHead(torch.randn(50, 8))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_head_reads_float_states(dtype):
    states, ids = torch.randn(2, 40, 8), torch.randint(50, (2, 40))
    targets = completion_targets(torch.ones(2, 40), torch.tensor([3, 3]))
    halved = VocabularyHead(HEAD.weight.to(dtype))
    exact = completion_nll(states, ids, targets, HEAD).mean()
    assert completion_nll(states, ids, targets, halved).dtype == torch.float32
    torch.testing.assert_close(completion_nll(states, ids, targets, halved).mean(), exact, atol=0.01, rtol=0)


def largest_allocation(function) -> int:
    """Bytes of the largest block that `function` asks of the allocator."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    return max(event.self_cpu_memory_usage for event in profile.events())


def test_logits_are_never_whole(monkeypatch):
    """256 tokens × 4096 words × 4 bytes = 4 MiB of logits; the largest block may be an eighth of them."""
    monkeypatch.setattr(imitation_loss, "CHUNK_LOGITS", 2**16)
    states, ids = torch.randn(2, 129, 64, requires_grad=True), torch.randint(4096, (2, 129))
    targets = completion_targets(torch.ones(2, 129), torch.tensor([1, 1]))
    head = VocabularyHead(torch.randn(4096, 64))
    whole = 256 * 4096 * 4

    def chunked():
        completion_nll(states, ids, targets, head).sum().backward()

    def naive():
        nn.functional.cross_entropy(states[:, :-1].flatten(0, 1) @ head.weight.T, ids[:, 1:].flatten()).backward()

    assert largest_allocation(naive) >= whole  # the measure sees what it should
    assert largest_allocation(chunked) <= whole / 8
