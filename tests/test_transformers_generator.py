"""Samples of the policy: the right distribution, whoever shares the batch, from any kind of model."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from tiny import byte_tokenizer, tiny_config, tiny_llama
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)
from trl import SFTConfig, SFTTrainer

from trl_ext.generation import transformers_generator
from trl_ext.generation.batching import cache_bytes_per_token, rows_in_memory
from trl_ext.generation.drawing import inverse_cdf, logits_filters
from trl_ext.generation.protocol import Part, Policy, Sampling
from trl_ext.generation.transformers_generator import TransformersGenerator
from trl_ext.trainer_kit.seeds import stable_seed

PROMPTS = ("why?", "a", "tell me more of it", "go on", "yes and")
PART = Part(0, (3, 5, 9, 11, 12), PROMPTS)
LORA = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, lora_dropout=0.5)


def sample(model, part=PART, *, batch_size=None, tokenizer=None, **sampling):
    sampling = Sampling(**{"num_generations": 3, "max_completion_length": 12} | sampling)
    policy = Policy(model, tokenizer or byte_tokenizer())
    ((same_part, samples),) = TransformersGenerator(batch_size=batch_size).generate([part], sampling, policy)
    assert same_part is part
    return samples


def ids(samples):
    return [one["completion_ids"] for one in samples]


def generated(model, prompts=PROMPTS):
    """What transformers' own greedy `generate` gives to the prompts, padded on the left, each up to its end."""
    inputs = byte_tokenizer()(list(prompts), return_tensors="pt", padding=True, padding_side="left")
    output = model.generate(**inputs, do_sample=False, max_new_tokens=12)
    completions = output[:, inputs["input_ids"].size(1) :].tolist()
    return [one[: one.index(1) + 1] if 1 in one else one for one in completions]


def that_ends(model, bias=3.0, end=1):
    """The model with a likelier end token, so that lengths differ; its head gets a bias for that."""
    head = torch.nn.Linear(model.lm_head.in_features, model.lm_head.out_features)
    with torch.no_grad():
        head.weight.copy_(model.lm_head.weight)
        head.bias.zero_()[end] = bias
    model.lm_head = head
    return model.eval()


MODELS = {
    "llama": lambda: tiny_llama(byte_tokenizer()),
    "grouped": lambda: tiny_llama(byte_tokenizer(), num_key_value_heads=1),
    "sliding": lambda: MistralForCausalLM(
        MistralConfig(**{**tiny_config(byte_tokenizer()).to_diff_dict(), "model_type": "mistral", "sliding_window": 5})
    ),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=259, eos_token_id=1, initializer_range=0.3)
    ),
    "lora": lambda: get_peft_model(tiny_llama(byte_tokenizer()), LORA),
}


@pytest.mark.parametrize("kind", MODELS)
def test_greedy_is_transformers_generate(kind):
    torch.manual_seed(0)
    model = MODELS[kind]().eval()
    samples = sample(model, temperature=0, num_generations=2, batch_size=4)
    assert ids(samples)[::2] == ids(samples)[1::2] == generated(model)
    assert len({tuple(one) for one in ids(samples)}) > 1  # the prompts matter


def test_samples_carry_what_made_them(policy):
    samples = sample(policy, seed=4)
    assert [(one["row"], one["sample"]) for one in samples] == [(row, k) for row in PART.rows for k in range(3)]
    assert [one["seed"] for one in samples] == [stable_seed(4, row, k) for row in PART.rows for k in range(3)]
    assert [one["prompt"] for one in samples[::3]] == list(PROMPTS)
    assert samples[0]["prompt_ids"] == byte_tokenizer()("why?")["input_ids"]
    assert {one["generator"] for one in samples} == {"transformers"}
    assert all(one["completion"] == byte_tokenizer().decode(one["completion_ids"], True) for one in samples)
    assert ids(samples)[0] != ids(samples)[1]  # of one prompt


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "top_k": 9, "top_p": 0.8}, {"repetition_penalty": 5.0}])
def test_company_changes_nothing(options):
    """Nor does the padding that it brings, which a repetition penalty must not see."""
    model, tokenizer = that_ends(tiny_llama(byte_tokenizer()), bias=1.5), byte_tokenizer(pad_is_eos=True)
    model.generation_config.eos_token_id = 1
    together = sample(model, tokenizer=tokenizer, batch_size=64, **options)
    assert len({len(one) for one in ids(together)}) > 2  # rows leave at different steps
    for batch_size in (1, 2, 3, 7):  # 2: the samples of a prompt are split over batches
        assert sample(model, tokenizer=tokenizer, batch_size=batch_size, **options) == together
    alone = sample(model, Part(7, PART.rows[1:2], PROMPTS[1:2]), tokenizer=tokenizer, **options)
    assert alone == together[3:6]
    fewer = sample(model, tokenizer=tokenizer, num_generations=1, **options)
    assert fewer == together[::3]


def test_seeds_and_rows_change_everything(policy):
    assert ids(sample(policy, seed=0)) != ids(sample(policy, seed=1))
    assert ids(sample(policy, Part(0, (0, 1), ("a", "a"))))[:3] != ids(sample(policy, Part(0, (0, 1), ("a", "a"))))[3:]


def test_first_tokens_have_the_models_frequencies(policy):
    """χ² of 2,000 draws in classes of at least 20 expected ones; its mean is the degrees of freedom, deviation √(2 n)."""
    model, count = policy, 2_000
    with torch.no_grad():
        model.lm_head.weight *= 6  # further from uniform
        logits = model(torch.tensor([byte_tokenizer()("why?")["input_ids"]])).logits[0, -1]
    samples = sample(
        model,
        Part(0, (0,), ("why?",)),
        num_generations=count,
        max_completion_length=1,
        temperature=0.8,
        batch_size=500,
    )
    drawn = torch.tensor(ids(samples)).flatten().bincount(minlength=len(logits))
    expected = count * (logits / 0.8).softmax(-1)
    often = expected >= 20
    drawn = torch.cat([drawn[often], drawn[~often].sum()[None]])
    expected = torch.cat([expected[often], expected[~often].sum()[None]])
    freedom = len(expected) - 1
    assert freedom >= 10
    chi_square = ((drawn - expected).square() / expected).sum()
    assert abs(chi_square - freedom) < 4 * (2 * freedom) ** 0.5


def test_inverse_cdf_by_hand():
    # F = .25, .25, .75, 1, 1: the second and the last token have no probability
    scores = torch.tensor([0.25, 0.0, 0.5, 0.25, 0.0]).log().expand(6, 5)
    uniforms = torch.tensor([0.0, 0.2499, 0.25, 0.7499, 0.75, 1 - 2**-53], dtype=torch.float64)
    assert inverse_cdf(scores, uniforms).tolist() == [0, 0, 2, 2, 3, 3]


def test_inverse_cdf_never_takes_a_token_that_is_ruled_out():
    torch.manual_seed(0)
    scores = torch.randn(500, 300).masked_fill(torch.rand(500, 300) < 0.5, float("-inf"))
    scores[:, -1] = float("-inf")
    for u in (0.0, 0.5, 1 - 2**-53):
        tokens = inverse_cdf(scores, torch.full((500,), u, dtype=torch.float64))
        assert scores.gather(1, tokens[:, None]).isfinite().all()


def test_logits_that_are_not_finite_are_named(policy):
    with torch.no_grad():
        policy.lm_head.weight[5] = float("nan")
    with pytest.raises(ValueError, match="logits are not finite"):
        sample(policy)


@pytest.mark.parametrize(
    ("options", "left"),
    # softmax = .1, .2, .3, .4
    [
        ({"top_k": 2}, [2, 3]),
        ({"top_p": 0.65}, [2, 3]),  # .4 + .3 ≥ .65
        ({"top_p": 0.3}, [3]),
        ({"min_p": 0.6}, [2, 3]),  # at least .6 · .4 = .24
        ({"temperature": 0.5, "top_p": 0.8}, [2, 3]),  # ∝ 1, 4, 9, 16: (16 + 9) / 30 = .83
        ({}, [0, 1, 2, 3]),
    ],
)
def test_filters_by_hand(options, left):
    scores = logits_filters(Sampling(**options))(torch.tensor([[0]]), torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log())
    assert scores.isfinite().nonzero()[:, 1].tolist() == left


def test_filters_are_applied(policy):
    greedy = ids(sample(policy, temperature=0))
    assert ids(sample(policy, top_k=1)) == ids(sample(policy, top_p=1e-6)) == ids(sample(policy, min_p=1.0)) == greedy
    assert ids(sample(policy)) != greedy


@pytest.mark.parametrize("ends", [[1], [1, 60, 61]])
def test_completions_end_with_their_first_end_token(ends):
    model = that_ends(tiny_llama(byte_tokenizer()), end=ends[-1])
    model.generation_config.eos_token_id = ends
    samples = sample(model, num_generations=20)
    assert {one["ended"] for one in samples} == {True, False}
    for one in samples:
        found = [token in ends for token in one["completion_ids"]]
        assert sum(found) == one["ended"] == found[-1]
        assert one["ended"] or len(found) == 12
    assert {one["completion_ids"][-1] for one in samples if one["ended"]} >= {ends[-1]}


def test_training_mode_and_dropout_come_back():
    torch.manual_seed(0)
    model = get_peft_model(tiny_llama(byte_tokenizer()), LORA).train()
    model.base_model.model.model.layers[1].eval()
    before = [module.training for module in model.modules()]
    assert sample(model) == sample(model)  # a dropout of one half would differ
    assert [module.training for module in model.modules()] == before
    with torch.no_grad():
        model.get_base_model().lm_head.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        sample(model)
    assert [module.training for module in model.modules()] == before


def test_gradient_checkpointing_changes_nothing(policy):
    expected = sample(policy)
    policy.gradient_checkpointing_enable()
    policy.config.use_cache = False
    assert sample(policy.train()) == expected


@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_base(tmp_path, bits):
    tiny_llama(byte_tokenizer(), hidden_size=64, intermediate_size=64).save_pretrained(tmp_path)
    settings = BitsAndBytesConfig(load_in_8bit=bits == 8, load_in_4bit=bits == 4)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=settings), LORA).eval()
    samples = sample(model, temperature=0, num_generations=1, batch_size=1)  # LLM.int8()'s outliers are of a batch
    assert ids(samples) == [generated(model, [prompt])[0] for prompt in PROMPTS]
    assert len(sample(model, batch_size=4)) == 15


def test_bf16_weights(policy):
    assert len(ids(sample(policy.bfloat16()))) == 15


def test_model_that_sft_trainer_has_patched(tmp_path, policy):
    expected = sample(policy)
    args = SFTConfig(str(tmp_path), bf16=False, report_to="none", disable_tqdm=True, learning_rate=0, max_steps=1)
    rows = Dataset.from_list([{"prompt": "a", "completion": "b"}] * 8)
    trainer = SFTTrainer(policy, args=args, train_dataset=rows, processing_class=byte_tokenizer())
    assert sample(trainer.model) == expected
    trainer.train()
    assert sample(trainer.model) == expected


def test_messages_are_answered_with_messages(policy):
    samples = sample(policy, Part(0, (0,), ([{"role": "user", "content": "why?"}],)))
    assert bytes(byte_tokenizer().decode(samples[0]["prompt_ids"]), "utf-8") == b"u:why?\na:"
    assert [message["role"] for message in samples[0]["completion"]] == ["assistant"]


def test_out_of_memory_halves_the_batch_and_loses_nothing(policy, monkeypatch):
    expected, real, sizes = sample(policy), transformers_generator.complete, []

    def complete(model, prompts, uniforms, **options):
        sizes.append(len(prompts))
        if len(prompts) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(model, prompts, uniforms, **options)

    monkeypatch.setattr(transformers_generator, "complete", complete)
    assert sample(policy, batch_size=12) == expected
    assert sizes == [12, 6, 3, 3, 3, 3, 3]


def test_one_row_that_does_not_fit_is_an_error(policy, monkeypatch):
    def complete(*args, **options):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(transformers_generator, "complete", complete)
    with pytest.raises(ValueError, match="single completion of a prompt of 18 tokens and up to 12 new ones"):
        sample(policy)


def test_batch_size_by_memory(policy):
    # 2 layers · keys and values · 2 heads · 8 numbers · 4 bytes
    assert cache_bytes_per_token(policy) == 256
    # a row: 100 · 256 + 260 · 40 = 36,000 bytes; half of 10⁶ holds 13.9 of them
    assert rows_in_memory(10**6, tokens=100, bytes_per_token=256, vocab_size=260) == 8
    assert rows_in_memory(0, tokens=100, bytes_per_token=256, vocab_size=260) == 1
    assert rows_in_memory(10**12, tokens=100, bytes_per_token=256, vocab_size=260) == 1024


def test_settings_hold_nothing_that_changes_no_sample():
    assert TransformersGenerator(batch_size=3).settings() == TransformersGenerator().settings()


def check_refused(model, message, part=PART, **sampling):
    with pytest.raises(ValueError, match=message):
        sample(model, part, **sampling)


def test_what_is_sampled_is_decoded_whole():
    tokenizer = byte_tokenizer()
    for one in sample(tiny_llama(tokenizer), Part(0, (0,), ("a",)), num_generations=16):
        assert one["completion"] == tokenizer.decode(one["completion_ids"], skip_special_tokens=True)


def test_prompts_beyond_the_window_are_refused_before_any_is_sampled(policy, monkeypatch):
    monkeypatch.setattr(transformers_generator, "complete", None)
    part = Part(0, (4, 6), ("a", "b" * 250))
    check_refused(policy, r"row 6 has 250 tokens, which with max_completion_length=12 .* window of 256", part)


def test_a_prompt_may_fill_the_window(policy):
    assert len(sample(policy, Part(0, (4,), ("b" * 244,)))) == 3


def test_bad_input(policy):
    check_refused(policy, "prompt of row 6 has no tokens", Part(0, (4, 6), ("a", "")))
    check_refused(None, "the policy has no model")
    check_refused(T5ForConditionalGeneration(T5Config(d_model=8, num_layers=1, vocab_size=9)), "encoder–decoder")
    mamba = MambaForCausalLM(MambaConfig(hidden_size=8, num_hidden_layers=1, vocab_size=259))
    check_refused(mamba, "MambaForCausalLM keeps a state other than the keys and values")
    griffin = RecurrentGemmaForCausalLM(
        RecurrentGemmaConfig(
            vocab_size=259,
            hidden_size=16,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=32,
            lru_width=16,
        )
    )
    check_refused(griffin, r"was given 18 tokens, and its cache's layers hold \[0, 18\]|a state other than")
    tuned = get_peft_model(policy, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    check_refused(tuned, "virtual tokens are not supported")
    with pytest.raises(ValueError, match=r"batch_size=0\): expected at least 1"):
        TransformersGenerator(batch_size=0)
