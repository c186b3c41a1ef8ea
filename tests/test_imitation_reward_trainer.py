import math

import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset
from peft import AutoPeftModelForSequenceClassification, LoraConfig, TaskType, get_peft_model
from tiny import ON_CPU, byte_tokenizer, tiny_llama, tiny_reward_model
from torch import nn
from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig, TrainerCallback
from trl import RewardConfig, RewardTrainer, TrlParser
from trl.trainer.reward_trainer import DataCollatorForPreference

from trl_ext import ImitationRewardConfig, ImitationRewardTrainer
from trl_ext.reward_modeling import imitation_loss

LENGTHS = [2, 40, 3, 17, 5, 29, 11, 8]  # tokens of the chosen completions, EOS included


def pairs(count: int = 8) -> Dataset:
    """Chosen completions praise, rejected ones do not; lengths as in LENGTHS."""
    rows = []
    for i in range(count):
        length = LENGTHS[i % len(LENGTHS)] - 1
        rows.append(
            {"prompt": f"item {i}: ", "chosen": ("good " * 9)[:length], "rejected": ("bad " * 9)[: 20 - i % 9]}
        )
    return Dataset.from_list(rows)


def config(folder, kind=ImitationRewardConfig, **changes):
    return kind(**ON_CPU | {"output_dir": str(folder), "max_length": 256, "max_steps": 5} | changes)


def trainer_of(folder, tokenizer, model=None, kind=ImitationRewardTrainer, args=None, **arguments):
    model = model or tiny_reward_model(tokenizer, tie_word_embeddings=True)
    arguments = {"train_dataset": pairs(), "processing_class": tokenizer} | arguments
    return kind(model=model, args=args or config(folder), **arguments)


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}


def logged(trainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


# -- what stays TRL's ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes", [{"kind": RewardConfig}, {"imitation_coef": 0.0}], ids=["plain config", "coefficient 0"]
)
def test_without_imitation_it_is_trl_bit_for_bit(tmp_path, tokenizer, changes):
    theirs = trainer_of(tmp_path, tokenizer, kind=RewardTrainer, args=config(tmp_path, RewardConfig))
    ours = trainer_of(tmp_path, tokenizer, args=config(tmp_path, **changes))
    theirs.train()
    ours.train()
    timeless = [
        [{k: v for k, v in entry.items() if "runtime" not in k and "per_second" not in k} for entry in history]
        for history in (theirs.state.log_history, ours.state.log_history)
    ]
    assert timeless[0] == timeless[1]
    assert all(torch.equal(weight, weights(ours)[name]) for name, weight in weights(theirs).items())


def test_loss_is_trls_plus_the_term(tmp_path, tokenizer):
    """Margin and centring stay in TRL's part."""
    data = pairs().add_column("margin", [0.1 * i for i in range(8)])
    shared = {"center_rewards_coefficient": 0.5, "max_steps": 1, "per_device_train_batch_size": 8}
    ours = trainer_of(tmp_path, tokenizer, train_dataset=data, args=config(tmp_path, imitation_coef=0.3, **shared))
    theirs = trainer_of(
        tmp_path, tokenizer, kind=RewardTrainer, train_dataset=data, args=config(tmp_path, RewardConfig, **shared)
    )
    ours.train()
    theirs.train()
    ranking, imitation = logged(ours, "ranking_loss")[0], logged(ours, "imitation_loss")[0]
    assert ranking == pytest.approx(logged(theirs, "loss")[0], rel=1e-6)
    assert logged(ours, "loss")[0] == pytest.approx(ranking + 0.3 * imitation, rel=1e-6)
    assert logged(ours, "chosen_perplexity")[0] == pytest.approx(math.exp(imitation), rel=1e-6)
    for name in ("accuracy", "margin", "mean_reward"):
        assert logged(ours, name)[0] == logged(theirs, name)[0]


def test_more_than_one_label(tmp_path, tokenizer):
    with pytest.raises(ValueError, match="reward models require `num_labels=1`"):
        trainer_of(tmp_path, tokenizer, model=tiny_reward_model(tokenizer, num_labels=2))
    tiny_reward_model(tokenizer, num_labels=2).save_pretrained(tmp_path / "two")
    with pytest.raises(ValueError, match=r"Reward model '.*two' has 2 labels: expected 1, one number per completion"):
        trainer_of(tmp_path, tokenizer, model=str(tmp_path / "two"))


def test_a_causal_model_at_a_path_gets_a_head_of_one_label(tmp_path, tokenizer):
    """Its config says nothing of labels, of which transformers then assumes two."""
    tiny_llama(tokenizer).save_pretrained(tmp_path / "causal")
    args = config(tmp_path, imitation_coef=0.0)
    assert trainer_of(tmp_path, tokenizer, model=str(tmp_path / "causal"), args=args).model.config.num_labels == 1


def test_offloading_without_a_card(tmp_path, tokenizer):
    with pytest.raises(ValueError, match=r"ImitationRewardConfig\(activation_offloading=True\) on a CPU"):
        trainer_of(tmp_path, tokenizer, args=config(tmp_path, activation_offloading=True))


# -- the term -----------------------------------------------------------------------------------------------------


def imitation_of(trainer, rows: Dataset | None = None, collate=None) -> float:
    """The imitation loss of the rows as one batch, without a step."""
    rows = rows or trainer.train_dataset
    trainer.model.eval()
    trainer._nll["eval"].clear()
    with torch.no_grad():
        trainer.compute_loss(trainer.model, (collate or trainer.data_collator)(list(rows)))
    total, count = trainer._nll["eval"][0].tolist()
    return total / count


def test_targets_are_the_chosen_completions_tokens(tmp_path, tokenizer):
    trainer = trainer_of(tmp_path, tokenizer)
    ids, targets = trainer._chosen(trainer.data_collator(list(trainer.train_dataset)))
    texts = [tokenizer.decode(row[mask]) for row, mask in zip(ids, targets, strict=True)]
    assert texts == [row["chosen"] + "<eos>" for row in pairs()]
    assert targets.sum(1).tolist() == LENGTHS


def test_eos_is_imitated_where_it_is_the_pad_token(tmp_path):
    tokenizer = byte_tokenizer(pad_is_eos=True)
    trainer = trainer_of(tmp_path, tokenizer)
    ids, targets = trainer._chosen(trainer.data_collator(list(trainer.train_dataset)))
    assert (ids[targets] == tokenizer.eos_token_id).sum() == 8  # one per row, none of the pads
    assert targets.sum(1).tolist() == LENGTHS


def test_rejected_and_pad_tokens_have_no_influence(tmp_path, tokenizer):
    trainer = trainer_of(tmp_path, tokenizer)
    before = imitation_of(trainer)
    assert imitation_of(trainer, trainer.train_dataset.map(lambda row: {"rejected_ids": [7] * 150})) == pytest.approx(
        before
    )


def test_equals_the_causal_models_own_loss(tmp_path, tokenizer):
    """On completions alone, the term is −log p(y | x) as the pretrained model would compute it."""
    causal = tiny_llama(tokenizer)
    causal.save_pretrained(tmp_path)
    trainer = trainer_of(tmp_path, tokenizer, model=str(tmp_path))
    row = trainer.train_dataset[1]
    ids = torch.tensor([row["chosen_ids"]])
    labels = ids.clone()
    labels[:, : row["num_prompt_tokens"]] = -100
    expected = causal(input_ids=ids, labels=labels).loss.item()
    assert imitation_of(trainer, trainer.train_dataset.select([1])) == pytest.approx(expected, rel=1e-5)


def test_training_on_it_raises_the_likelihood_of_the_chosen(tmp_path, tokenizer):
    trainer = trainer_of(tmp_path, tokenizer, args=config(tmp_path, imitation_coef=1.0, max_steps=10))
    before = imitation_of(trainer)
    trainer.train()
    assert imitation_of(trainer) < before - 0.3


def test_one_forward_pass_and_no_whole_logits(tmp_path, tokenizer, monkeypatch):
    """A batch costs one pass of the trunk, and no block as large as the logits of its chosen tokens."""
    monkeypatch.setattr(imitation_loss, "CHUNK_LOGITS", 2**18)
    model = tiny_reward_model(tokenizer, tie_word_embeddings=True, vocab_size=16384)
    trainer = trainer_of(tmp_path, tokenizer, model=model)
    passes = []
    trainer.model.model.register_forward_hook(lambda *args: passes.append(1))
    batch = trainer.data_collator(list(trainer.train_dataset))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        trainer.compute_loss(trainer.model, batch).backward()
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    assert len(passes) == 1
    assert largest <= sum(LENGTHS) * 16384 * 4 / 4  # 115 tokens; the embedding's gradient is 16384 × 16 × 4


class LeftPadding(DataCollatorForPreference):
    def torch_call(self, examples):
        batch = super().torch_call(examples)
        shifts = (batch["attention_mask"] == 0).sum(1).tolist()
        for name in ("input_ids", "attention_mask"):
            batch[name] = torch.stack([row.roll(by) for row, by in zip(batch[name], shifts, strict=True)])
        return batch


def test_padding_side_changes_nothing(tmp_path, tokenizer):
    right = trainer_of(tmp_path, tokenizer)
    left = trainer_of(tmp_path, tokenizer, data_collator=LeftPadding(tokenizer.pad_token_id))
    assert imitation_of(left) == pytest.approx(imitation_of(right), rel=1e-5)
    tokenizer.padding_side = "left"
    assert imitation_of(trainer_of(tmp_path, tokenizer)) == imitation_of(right)


def test_collator_that_shortens_is_refused(tmp_path, tokenizer):
    def shorten(rows):
        collator = DataCollatorForPreference(tokenizer.pad_token_id)
        return collator([row | {"chosen_ids": row["chosen_ids"][:12]} for row in rows])

    trainer = trainer_of(tmp_path, tokenizer, data_collator=shorten)
    with pytest.raises(
        ValueError, match=r"data_collator=.*expected the chosen sequences first and whole .* got \[1[02], 1[02],"
    ):
        trainer.train()


@pytest.mark.parametrize("accumulation", [2, 8])
def test_accumulation_equals_one_large_batch(tmp_path, tokenizer, accumulation):
    """Completions of 2 to 40 tokens: a mean of means would weigh the short ones more."""
    after = []
    for steps in (1, accumulation):
        args = config(
            tmp_path,
            imitation_coef=1.0,
            max_steps=1,
            optim="sgd",
            max_grad_norm=0.0,
            per_device_train_batch_size=8 // steps,
            gradient_accumulation_steps=steps,
        )
        trainer = trainer_of(tmp_path, tokenizer, args=args)
        trainer.train()
        after.append((weights(trainer), logged(trainer, "loss")[0], logged(trainer, "imitation_loss")[0]))
    torch.testing.assert_close(after[0][0], after[1][0], atol=1e-6, rtol=1e-4)
    assert after[0][1:] == pytest.approx(after[1][1:], rel=1e-5)


# -- the head -----------------------------------------------------------------------------------------------------


def test_untied_head_stays_frozen_and_outside_the_model(tmp_path, tokenizer):
    causal = tiny_llama(tokenizer)
    causal.save_pretrained(tmp_path / "pretrained")
    trainer = trainer_of(tmp_path, tokenizer, model=str(tmp_path / "pretrained"))
    assert torch.equal(trainer._head.weight, causal.lm_head.weight)
    trainer.train()
    assert torch.equal(trainer._head.weight, causal.lm_head.weight)
    assert not any(
        p.shape == causal.lm_head.weight.shape and "embed" not in n for n, p in trainer.model.named_parameters()
    )


def test_tied_head_moves_with_the_embedding_but_is_not_trained_as_head(tmp_path, tokenizer):
    trainer = trainer_of(tmp_path, tokenizer, args=config(tmp_path, imitation_coef=1.0))
    assert trainer._head.weight is trainer.model.get_input_embeddings().weight
    trainer.compute_loss(trainer.model, trainer.data_collator(list(trainer.train_dataset))).backward()
    gradient = trainer._head.weight.grad
    unread = tokenizer.convert_tokens_to_ids("Z")  # in no text: only its role as output could reach it
    assert gradient.abs().sum() > 0 and gradient[unread].abs().sum() == 0


def test_head_by_argument_and_by_option(tmp_path, tokenizer):
    causal = tiny_llama(tokenizer)
    causal.save_pretrained(tmp_path)
    untied = tiny_reward_model(tokenizer)
    by_argument = trainer_of(tmp_path, tokenizer, model=untied, imitation_head=causal.lm_head)
    by_option = trainer_of(tmp_path, tokenizer, model=untied, args=config(tmp_path, imitation_head=str(tmp_path)))
    assert torch.equal(by_argument._head.weight, by_option._head.weight)
    with pytest.raises(ValueError, match="Pass imitation_head="):
        trainer_of(tmp_path, tokenizer, model=untied)


def test_tokens_that_the_head_does_not_know_are_left_out(tmp_path, tokenizer):
    model, head = tiny_reward_model(tokenizer), nn.Linear(16, tokenizer.convert_tokens_to_ids("o"), bias=False)
    with pytest.warns(UserWarning, match="the pretrained vocabulary head has no row for .* tokens"):
        trainer = trainer_of(tmp_path, tokenizer, model=model, imitation_head=head)
    ids, targets = trainer._chosen(trainer.data_collator(list(trainer.train_dataset)))
    assert set(tokenizer.decode(ids[targets]).replace("<eos>", "")) == {"d", "g"}  # of `good `, the space is a `Ġ`
    trainer.train()


# -- all that RewardTrainer takes -----------------------------------------------------------------------------------


def messages(row):
    return {
        "prompt": [{"role": "user", "content": row["prompt"]}],
        "chosen": [{"role": "assistant", "content": row["chosen"]}],
        "rejected": [{"role": "assistant", "content": row["rejected"]}],
    }


def implicit(row):
    return {"chosen": row["prompt"] + row["chosen"], "rejected": row["prompt"] + row["rejected"]}


DATASETS = {
    "standard": lambda tokenizer: pairs(),
    "implicit": lambda tokenizer: pairs().map(implicit, remove_columns="prompt"),
    "conversational": lambda tokenizer: pairs().map(messages, remove_columns=["prompt", "chosen", "rejected"]),
    "conversational implicit": lambda tokenizer: (
        pairs().map(messages, remove_columns=["prompt", "chosen", "rejected"]).map(implicit, remove_columns="prompt")
    ),
    "tokenised": lambda tokenizer: pairs().map(
        lambda row: {f"{k}_ids": tokenizer(text + "<eos>")["input_ids"] for k, text in implicit(row).items()},
        remove_columns=["prompt", "chosen", "rejected"],
    ),
    "torch": lambda tokenizer: DATASETS["tokenised"](tokenizer).with_format("torch"),
}


@pytest.mark.parametrize("stream", [False, True], ids=["at hand", "streamed"])
@pytest.mark.parametrize("kind", DATASETS)
def test_every_kind_of_data_trains(tmp_path, tokenizer, kind, stream):
    data = DATASETS[kind](tokenizer)
    data = data.to_iterable_dataset() if stream else data
    trainer = trainer_of(tmp_path, tokenizer, train_dataset=data, args=config(tmp_path, max_steps=1))
    ids, targets = trainer._chosen(trainer.data_collator(list(trainer.train_dataset)))
    assert [tokenizer.decode(row[mask])[-6:] for row, mask in zip(ids, targets, strict=True)] == [
        (row["chosen"] + "<eos>")[-6:] for row in pairs()
    ]
    trainer.train()
    assert logged(trainer, "imitation_loss")[0] > 0


def test_evaluation_is_logged_apart_and_does_not_depend_on_its_batches(tmp_path, tokenizer):
    values = []
    for batch_size in (1, 8):
        args = config(
            tmp_path, per_device_eval_batch_size=batch_size, eval_strategy="steps", eval_steps=5, max_steps=5
        )
        trainer = trainer_of(tmp_path, tokenizer, args=args, eval_dataset={"seen": pairs(), "other": pairs(16)})
        trainer.train()
        metrics = trainer.evaluate(pairs(5))  # not prepared before
        names = ("eval_imitation_loss", "eval_chosen_perplexity", "eval_ranking_loss")
        assert metrics["eval_accuracy"] >= 0 and len(logged(trainer, names[0])) == 3
        values.append([value for name in names[:2] for value in logged(trainer, name)])
    assert values[0] == pytest.approx(values[1], rel=1e-5)


@pytest.mark.parametrize("given", ["config", "model"])
def test_adapter(tmp_path, tokenizer, given):
    """Under gradient checkpointing, which is TRL's default; the saved adapter scores as the trained one."""
    tiny_llama(tokenizer).save_pretrained(tmp_path / "base")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1, dtype=torch.float32)
    base.save_pretrained(tmp_path / "classifier")  # with a `score` head to start from
    lora = LoraConfig(task_type=TaskType.SEQ_CLS, target_modules=["q_proj", "v_proj"])
    arguments = {"peft_config": lora} if given == "config" else {}
    model = get_peft_model(base, lora) if given == "model" else base
    args = config(tmp_path, gradient_checkpointing=True)
    trainer = trainer_of(tmp_path, tokenizer, model=model, args=args, **arguments)
    before = weights(trainer)
    trainer.train()
    moved = {name.split(".")[-3] for name, weight in weights(trainer).items() if not torch.equal(weight, before[name])}
    assert moved == {"lora_A", "lora_B", "modules_to_save"}
    trainer.save_model(tmp_path / "adapter")
    loaded = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "adapter", num_labels=1).eval()
    torch.testing.assert_close(scores(loaded, trainer), scores(trainer.model.eval(), trainer))


def scores(model, trainer) -> torch.Tensor:
    batch = trainer.data_collator(list(trainer.train_dataset))
    with torch.no_grad():
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


def test_what_is_saved_is_a_plain_reward_model(tmp_path, tokenizer):
    tiny_llama(tokenizer).save_pretrained(tmp_path / "pretrained")
    trainer = trainer_of(tmp_path, tokenizer, model=str(tmp_path / "pretrained"))
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    loaded, report = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert torch.equal(scores(loaded.eval(), trainer), scores(trainer.model.eval(), trainer))


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


def test_resumed_run_ends_in_the_same_weights(tmp_path, tokenizer):
    def run(folder, resume=None, **arguments):
        args = config(folder, max_steps=6, save_strategy="steps", save_steps=3, gradient_accumulation_steps=2)
        trainer = trainer_of(folder, tokenizer, args=args, train_dataset=pairs(16), **arguments)
        trainer.train(resume_from_checkpoint=resume)
        return weights(trainer)

    whole = run(tmp_path / "whole")
    run(tmp_path / "halved", callbacks=[StopAt(3)])
    resumed = run(tmp_path / "halved", resume=True)
    assert all(torch.equal(weight, resumed[name]) for name, weight in whole.items())


def test_mixed_precision(tmp_path, tokenizer, monkeypatch):
    """The head is read in 16 bits, as it would be in the model."""
    trainer = trainer_of(tmp_path, tokenizer, args=config(tmp_path, bf16=True, max_steps=2))
    exact = imitation_of(trainer_of(tmp_path, tokenizer))
    read, read_in = imitation_loss.linear, set()
    monkeypatch.setattr(imitation_loss, "linear", lambda *args: read_in.add(args[1].dtype) or read(*args))
    trainer.train()
    assert read_in == {torch.bfloat16}
    assert logged(trainer, "imitation_loss")[0] == pytest.approx(exact, rel=0.05)


def test_arguments_in_trls_order_and_default_config(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(ImitationRewardConfig, "bf16", False)
    trainer = ImitationRewardTrainer(
        tiny_reward_model(tokenizer, tie_word_embeddings=True), config(tmp_path), None, pairs(), None, tokenizer
    )
    assert isinstance(trainer.args, ImitationRewardConfig) and trainer.args.imitation_coef == 0.1


def test_options_can_be_parsed(tmp_path):
    (args,) = TrlParser(ImitationRewardConfig).parse_args_and_config(
        f"--output_dir {tmp_path} --use_cpu --imitation_coef 0.5 --imitation_head some/checkpoint".split()
    )
    assert (args.imitation_coef, args.imitation_head) == (0.5, "some/checkpoint")


# -- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coefficient", [-0.1, float("nan"), float("inf")])
def test_coefficient_out_of_range(tmp_path, coefficient):
    with pytest.raises(ValueError, match=r"imitation_coef=.*: expected a finite weight of at least 0"):
        config(tmp_path, imitation_coef=coefficient)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"imitation_coef": 0.0, "imitation_head": "x"},
            r"imitation_head='x', imitation_coef=0.0\): it does nothing at",
        ),
        ({"imitation_coef": True}, r"imitation_coef=True\): expected a finite weight"),
        ({"imitation_head": 3}, r"imitation_head=3\): it must be text"),
        ({"learning_rate": "1e-4"}, r"learning_rate='1e-4'\): it must be in"),
    ],
)
def test_options_of_another_kind_or_without_effect(tmp_path, options, message):
    with pytest.raises(ValueError, match=rf"ImitationRewardConfig\({message}"):
        config(tmp_path, **options)


def test_a_head_that_nothing_reads(tmp_path, tokenizer):
    head = torch.nn.Linear(16, len(tokenizer), bias=False)
    with pytest.raises(ValueError, match=r"imitation_head=…\) without imitation: it does nothing at imitation_coef=0"):
        trainer_of(tmp_path, tokenizer, args=config(tmp_path, imitation_coef=0.0), imitation_head=head)


def test_max_length_above_the_window(tmp_path, tokenizer):
    model = tiny_reward_model(tokenizer, tie_word_embeddings=True)
    with pytest.raises(ValueError, match=r"max_length=1024\): the model's window has 256 .* Set max_length=256"):
        trainer_of(tmp_path, tokenizer, model=model, args=config(tmp_path, max_length=1024))
    trainer_of(tmp_path, tokenizer, args=config(tmp_path, max_length=1024, imitation_coef=0.0))  # TRL allows it
    trainer_of(tmp_path, tokenizer, args=config(tmp_path, max_length=None))


@pytest.mark.parametrize("stream", [False, True])
def test_empty_data(tmp_path, tokenizer, stream):
    empty = IterableDataset.from_generator(lambda: iter(())) if stream else pairs().select([])
    with pytest.raises(ValueError, match="the train dataset is empty; expected preference pairs"):
        trainer_of(tmp_path, tokenizer, train_dataset=empty)
    with pytest.raises(ValueError, match="the eval dataset is empty"):
        trainer_of(tmp_path, tokenizer, eval_dataset=empty)


@pytest.mark.parametrize("imitation_coef", [0.0, 0.1])
def test_what_is_no_data_set(tmp_path, tokenizer, imitation_coef):
    args = config(tmp_path, imitation_coef=imitation_coef)
    with pytest.raises(ValueError, match=r"the train dataset: expected one data set, got a DatasetDict of \['a'\]"):
        trainer_of(tmp_path, tokenizer, args=args, train_dataset=DatasetDict(a=pairs()))
    with pytest.raises(ValueError, match=r"the train dataset is of type list: expected a datasets.Dataset, or"):
        trainer_of(tmp_path, tokenizer, args=args, train_dataset=list(pairs()))
    with pytest.raises(ValueError, match="the b dataset is of type list"):
        trainer_of(tmp_path, tokenizer, args=args, eval_dataset={"a": pairs(), "b": list(pairs())})
    trainer_of(tmp_path, tokenizer, args=args, eval_dataset=DatasetDict(a=pairs()))


def test_all_pairs_too_long(tmp_path, tokenizer):
    with pytest.raises(ValueError, match=r"no pair of the train dataset is left .*longer than max_length"):
        trainer_of(tmp_path, tokenizer, args=config(tmp_path, max_length=4))


def test_row_without_completion(tmp_path, tokenizer):
    data = Dataset.from_list([*pairs(), {"prompt": "x", "chosen": "", "rejected": "no"}])
    with pytest.raises(ValueError, match="row 8 of the train dataset has no completion in column 'chosen'"):
        trainer_of(tmp_path, tokenizer, train_dataset=data)


def test_ties_are_dropped(tmp_path, tokenizer):
    data = Dataset.from_list([*pairs(), {"prompt": "x", "chosen": "same", "rejected": "same"}])
    with pytest.warns(UserWarning, match="drops 1 of 9 pairs of the train dataset"):
        assert len(trainer_of(tmp_path, tokenizer, train_dataset=data).train_dataset) == 8


# -- does it learn? -------------------------------------------------------------------------------------------------


def taste(seed: int, count: int) -> Dataset:
    """The chosen completion has more vowels: a preference that must be read off the letters."""
    generator = torch.Generator().manual_seed(seed)

    def word(letters):
        return "".join(letters[i] for i in torch.randint(len(letters), (8,), generator=generator))

    return Dataset.from_list(
        [
            {"prompt": word("bcdfg") + ":", "chosen": word("aeioubcd"), "rejected": word("aebcdfgh")}
            for _ in range(count)
        ]
    )


def test_it_learns_a_preference_and_keeps_its_language(tmp_path, tokenizer):
    kept = {}
    for coefficient in (0.0, 0.1):
        args = config(tmp_path, imitation_coef=coefficient, max_steps=80, per_device_train_batch_size=16)
        trainer = trainer_of(tmp_path, tokenizer, args=args, train_dataset=taste(0, 256), eval_dataset=taste(1, 64))
        trainer.train()
        assert trainer.evaluate()["eval_accuracy"] > 0.75  # chance is 0.5
        judge = trainer_of(tmp_path, tokenizer, model=trainer.model, train_dataset=taste(1, 64))
        kept[coefficient] = imitation_of(judge)
    assert kept[0.1] < kept[0.0] - 0.5  # nats per token


def test_adapters_on_a_quantised_base_keep_every_digit(tmp_path, tokenizer):
    """TRL casts them to bf16, in which a step of 1e-5 is lost."""
    tiny_reward_model(tokenizer, tie_word_embeddings=True, hidden_size=64).save_pretrained(tmp_path / "base")
    quantised = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "base", num_labels=1, quantization_config=BitsAndBytesConfig(load_in_8bit=True)
    )
    lora = LoraConfig(task_type=TaskType.SEQ_CLS, target_modules=["q_proj"], init_lora_weights=False)
    model = get_peft_model(quantised, lora)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    trainer = trainer_of(tmp_path, tokenizer, model, args=config(tmp_path, max_steps=1))
    after = dict(trainer.model.named_parameters())
    assert before and all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    trainer.train()
