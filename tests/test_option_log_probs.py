import pytest
import torch
from option_case import byte_level_tokenizer, sentence_piece_tokenizer
from tiny import byte_tokenizer, tiny_llama
from transformers import MistralConfig, MistralForCausalLM

from trl_ext.sequences import option_log_probs as module
from trl_ext.sequences.option_log_probs import choice_log_probs, option_ids, option_log_probs

TEN = [str(i) for i in range(1, 11)]


def by_hand(model, context: list[int], option: tuple[int, ...]) -> float:
    """Σ log p of an option's tokens, each read from all logits of one sequence."""
    ids = [*context, *option]
    with torch.no_grad():
        log_probs = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    return sum(log_probs[len(context) + n - 1, token].item() for n, token in enumerate(option))


def test_by_enumeration():
    """Contexts of unlike lengths in batches of two, each token of an option read from whole logits."""
    tokenizer = byte_tokenizer()
    model = tiny_llama(tokenizer)
    contexts, options = ["Which? ", "a", "Better of the two: "], ["1", "yes", "no"]
    found = option_log_probs(model, tokenizer, contexts, options, batch_size=2)
    for context, row in zip(contexts, found, strict=True):
        ids = tokenizer(context)["input_ids"]
        expected = [by_hand(model, ids, tuple(tokenizer(option)["input_ids"])) for option in options]
        assert row.tolist() == pytest.approx(expected, abs=1e-5)


def test_all_tokens_as_options_have_all_mass():
    model = tiny_llama(byte_tokenizer())
    found = choice_log_probs(model, [module.Choice([5, 6], [(i,) for i in range(model.config.vocab_size)])])
    assert found.exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_ten_is_not_one():
    """p(1) = P("1")·(1 − q) and p(10) = P("1")·q, with q = P("0" | "1"); read in one sequence."""
    tokenizer = byte_tokenizer()
    model = tiny_llama(tokenizer)
    lengths = []
    model.model.embed_tokens.register_forward_hook(lambda module, args, output: lengths.append(args[0].shape))
    option_log_probs(model, tokenizer, ["Mark: "], TEN)  # looks once how logits are made
    lengths.clear()
    [found] = option_log_probs(model, tokenizer, ["Mark: "], TEN).exp()
    assert lengths[0] == (1, len("Mark: ") + 1)
    context, (one, zero) = tokenizer("Mark: ")["input_ids"], tokenizer("10")["input_ids"]
    p_one = by_hand(model, context, (one,))
    q = by_hand(model, [*context, one], (zero,))
    p, q = torch.tensor([p_one, q]).exp().tolist()
    assert found[0].item() == pytest.approx(p * (1 - q), rel=1e-4)
    assert found[9].item() == pytest.approx(p * q, rel=1e-4)
    assert found.sum().item() == pytest.approx(
        sum(torch.tensor(by_hand(model, context, (tokenizer(o)["input_ids"][0],))).exp().item() for o in TEN[:9]),
        rel=1e-4,
    )


@pytest.mark.parametrize(
    "tokenizer, context, options, tokens",
    [
        (byte_level_tokenizer(("Ġ", "1"), ("Ġ", "2")), "Answer:", [" 1", " 2"], ([], ["Ġ1"], ["Ġ2"])),
        (byte_level_tokenizer(("Ġ", "1"), ("Ġ", "2")), "Answer: ", ["1", "2"], (["Ġ"], ["Ġ1"], ["Ġ2"])),
        (byte_level_tokenizer(("Ġ", "1")), "Answer: ", ["1", "2"], (["Ġ"], ["Ġ1"], ["Ġ", "2"])),
        (byte_level_tokenizer(), "Answer:", [" 1", " 2"], ([], ["Ġ", "1"], ["Ġ", "2"])),
        (sentence_piece_tokenizer("▁1", "▁2"), "Answer:", [" 1", " 2"], ([], ["▁1"], ["▁2"])),
        (sentence_piece_tokenizer("▁1", "▁2"), "Answer: ", ["1", "2"], (["▁"], ["▁1"], ["▁2"])),
        (sentence_piece_tokenizer(), "Answer:", [" 1", " 2"], ([], ["▁", "1"], ["▁", "2"])),
        (sentence_piece_tokenizer(":▁1"), "Answer:", [" 1", " 2"], ([":"], [":▁1"], [":", "▁", "2"])),
    ],
)
def test_what_a_tokenizer_splits_or_merges(tokenizer, context, options, tokens):
    """The options' ids are those of the whole text, behind what all have in common; `tokens`: what the context loses, then theirs."""
    choice = option_ids(context, options, tokenizer)
    lost, *expected = tokens
    assert tokenizer.convert_ids_to_tokens(tokenizer(context)["input_ids"])[len(choice.context) :] == lost
    assert [tokenizer.convert_ids_to_tokens(list(option)) for option in choice.options] == expected
    model = tiny_llama(tokenizer)
    [found] = option_log_probs(model, tokenizer, [context], options)
    assert found.tolist() == pytest.approx([by_hand(model, choice.context, o) for o in choice.options], abs=1e-5)


def test_messages_are_answered_in_the_next_turn():
    tokenizer = byte_tokenizer()
    choice = option_ids([{"role": "user", "content": "1 or 2?"}], ["1", "2"], tokenizer)
    assert tokenizer.decode(choice.context) == "u:1 or 2?\na:"
    assert [tokenizer.decode(list(option)) for option in choice.options] == ["1", "2"]


def test_what_a_template_writes_before_an_answer_is_the_contexts():
    """Empty thoughts, which it writes for turns that are over, and not where a turn begins."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "m.content", "('[] ' if m.role == 'assistant' else '') + m.content"
    )
    choice = option_ids([{"role": "user", "content": "?"}], ["1", "10"], tokenizer)
    assert tokenizer.decode(choice.context) == "u:?\na:[] "
    assert [tokenizer.decode(list(option)) for option in choice.options] == ["1", "10"]


def test_of_no_contexts_there_are_none():
    tokenizer = byte_tokenizer()
    assert option_log_probs(tiny_llama(tokenizer), tokenizer, [], TEN).shape == (0, 10)


@pytest.mark.parametrize("window", [None, 64])
def test_what_all_begin_with_is_read_once(window):
    """The same numbers, also behind a sliding window, from far fewer tokens."""
    tokenizer = byte_tokenizer()
    model = tiny_llama(tokenizer, max_position_embeddings=512)
    if window:
        config = MistralConfig(**model.config.to_dict() | {"sliding_window": window, "attn_implementation": "eager"})
        torch.manual_seed(0)
        model = MistralForCausalLM(config).eval()
    contexts = ["x" * 200 + end for end in ("1: ", "the second one: ", "c: ", "d: ")]
    seen = []
    model.model.embed_tokens.register_forward_hook(lambda module, args, output: seen.append(args[0].numel()))
    option_log_probs(model, tokenizer, contexts[:1], TEN)
    seen.clear()
    shared = option_log_probs(model, tokenizer, contexts, TEN, batch_size=3)
    assert sum(seen) < 300
    for context, row in zip(contexts, shared, strict=True):
        [alone] = option_log_probs(model, tokenizer, [context], TEN)
        assert row.tolist() == pytest.approx(alone.tolist(), abs=1e-4)


def test_a_model_is_left_in_its_mode():
    model = tiny_llama(byte_tokenizer()).train()
    option_log_probs(model, byte_tokenizer(), ["a"], ["1", "2"])
    assert model.training


@pytest.mark.parametrize(
    "context, options, message",
    [
        ("a", ["1", "1"], "tells apart"),
        ("a", ["1", ""], "a token or more"),
        ([{"role": "user", "content": "a"}], ["1", ""], "a token or more"),
        ([{"role": "user", "content": "a"}], ["1", "1"], "tells apart"),
        ("", ["1", "2"], "a context of a token or more"),
    ],
)
def test_bad_input(context, options, message):
    tokenizer = byte_tokenizer()
    with pytest.raises(ValueError, match=message):
        option_log_probs(tiny_llama(tokenizer), tokenizer, [context], options)


def test_options_that_are_both_unknown_are_refused():
    tokenizer = sentence_piece_tokenizer()
    tokenizer.backend_tokenizer.model = type(tokenizer.backend_tokenizer.model)(
        [("<unk>", 0.0), ("▁", -1.0), ("a", -1.0)], unk_id=0
    )
    with pytest.raises(ValueError, match="tells apart"):
        option_log_probs(tiny_llama(tokenizer), tokenizer, ["a"], [" 1", " 2"])
