"""Every bad input is a ValueError that names the call, what was expected, what came and what to do."""

import dataclasses
import inspect
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from self_training_case import PROMPTS, even_letters, logged, trainer
from tiny import byte_tokenizer, never_ending, tiny_llama, tokenizer_with_options
from trl import SFTConfig, SFTTrainer

from trl_ext import FileGenerator, RAFTConfig, RAFTTrainer, ReSTConfig, ReSTTrainer, SelfTrainingConfig
from trl_ext.self_training.self_training_input import REFUSED


def config(cls=RAFTConfig, **changes):
    return cls(output_dir="unused", bf16=False, report_to="none", **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_generations": 0}, r"RAFTConfig\(num_generations=0\): it must be in \[1, ∞\)"),
        ({"acceptance_ratio": 0.0}, r"acceptance_ratio=0.0\): it must be in \(0.0, 1.0\]"),
        ({"acceptance_ratio": 1.5}, r"acceptance_ratio=1.5\): it must be in \(0.0, 1.0\]"),
        ({"temperature": -1.0}, r"temperature=-1.0\): it must be in \[0.0"),
        ({"temperature": math.nan}, r"temperature=nan"),
        ({"beta": -0.1}, r"beta=-0.1"),
        ({"num_stages": 0}, r"num_stages=0"),
        ({"stage_batch_size": 0}, r"stage_batch_size=0"),
        ({"top_p": 0.0}, r"Sampling\(top_p=0.0\): expected a share in \(0, 1\]"),
        ({"selection": "best"}, r"selection='best'\): choose one of 'local', 'global', 'threshold'"),
        ({"thresholds": [0.5]}, r"selection='local', thresholds=\[0.5\]\): this selection has none. Leave them out"),
        (
            {"num_train_epochs": 5.0},
            r"num_train_epochs=5.0\): the run's length is num_stages × Improves per stage.*set num_stages",
        ),
        ({"keep_best": True, "eval_strategy": "epoch"}, r"eval_strategy='epoch'\): it needs held-out scores within"),
        ({"save_only_model": True}, r"save_only_model=True\): a resumed run would begin at its first step"),
        ({"importance_clip": 0.2, "pad_to_multiple_of": 8}, "batches are padded to their longest row"),
        ({"max_steps": 10}, r"max_steps=10\): the run's length is num_stages"),
        ({"max_length": 512}, r"max_length=512\): a sequence is as long as it was sampled"),
        ({"packing": True}, r"packing=True\): an Improve has a fixed number of rows"),
        ({"completion_only_loss": False}, r"completion_only_loss=False\): the loss runs over completions only"),
        ({"dataloader_persistent_workers": True, "dataloader_num_workers": 1}, "go on with the rows of the first"),
        (
            {"keep_best": True},
            r"keep_best=True, eval_strategy='no'\): it needs held-out scores within an Improve. Set",
        ),
        ({"improve_patience": 2}, r"improve_patience=2, eval_strategy='no'\): it needs held-out scores"),
        ({"score_map": "min"}, r"score_map='min'\): choose one of 'none', 'fixed'"),
        ({"score_range": [1.0, 0.0]}, r"score_range=\[1.0, 0.0\]\): expected \[lowest, highest\]"),
        ({"invalid_scores": "skip"}, r"invalid_scores='skip'\): choose 'raise' or 'drop'"),
        ({"importance_clip": 0.2, "loss_type": "dft"}, "RAFT\\+\\+'s loss takes neither"),
        ({"importance_clip": 0.2, "mix_dataset": True}, "were not sampled from the policy"),
        (
            {"importance_clip": 0.2, "acceptance_ratio": 0.5},
            "RAFT\\+\\+ keeps all that share their prompt's best score",
        ),
        ({"importance_clip": 0.2, "label_smoothing_factor": 0.1}, "RAFT\\+\\+'s loss takes neither"),
        ({"score_range": [0.0, 5.0]}, r"score_range=\[0.0, 5.0\], score_map='none'\): .* without score_map='fixed'"),
        ({"score_range": [0.0, math.inf], "score_map": "fixed"}, r"expected \[lowest, highest\]"),
        (
            {"improve_epochs": 3, "improve_steps": 5},
            r"improve_epochs=3, improve_steps=5\): it does nothing beside `imp",
        ),
        ({"improve_lr_factor": 0.5}, r"improve_lr_factor=0.5, thresholds=None\): it does nothing with one Improve"),
        (
            {"fresh_optimizer": False, "restart_from_base": True},
            "the optimizer begins anew with the weights. Leave one",
        ),
        ({"fresh_optimizer": False, "num_stages": 1}, r"num_stages=1\): it does nothing in a run of one stage"),
        ({"level_stages": 2, "num_stages": 3}, r"level_stages=2, num_stages=3\): the run would be over before"),
        ({"beta": 0.1, "random_selection": True}, "so many of each prompt's samples are drawn whatever they rank"),
        ({"max_kept_per_prompt": 1}, "since no more are kept of a prompt anyway"),
        ({"max_kept_per_prompt": 4, "acceptance_ratio": 0.5}, "since no more are kept of a prompt anyway"),
        ({"max_kept_per_prompt": 8, "selection": "global"}, "since no more are kept of a prompt anyway"),
        ({"random_selection": True, "num_generations": 1}, "it does nothing with one sample per prompt"),
        ({"random_selection": True, "acceptance_ratio": 1.0}, "it does nothing, since all samples are kept. Lower"),
        (
            {"random_selection": True, "acceptance_ratio": 1.0, "selection": "global"},
            "it does nothing, since all samples are kept. Lower",
        ),
        (
            {"random_selection": True, "selection": "percentile", "thresholds": [0.0]},
            r"acceptance_ratio=None, thresholds=\[0.0\]\): it does nothing, since all .* raise the thresholds",
        ),
        (
            {"score_map": "grow"},
            r"score_map='grow', selection='local', beta=0.0\): it does nothing, since the samples",
        ),
        ({"score_map": "running", "selection": "global"}, "it does nothing, since the samples keep their order"),
        (
            {"score_map": "grow", "selection": "percentile", "thresholds": [0.5]},
            "it does nothing, since the samples keep their order and distances",
        ),
        ({"restart_from_base": True, "num_stages": 1}, r"num_stages=1\): it does nothing in a run of one stage"),
        ({"drop_duplicates": False, "num_generations": 1}, "it does nothing with one sample per prompt"),
        ({"drop_alike": True, "num_generations": 1}, "so all would be left out. Sample more"),
        ({"importance_clip": 0.2, "num_generations": 1}, r"drop_alike=True, num_generations=1\): one sample"),
        ({"truncation_mode": "keep_end"}, r"truncation_mode='keep_end'\): a sequence is as long as it was sampled"),
        ({"dataset_text_field": "body"}, r"dataset_text_field='body'\): rows are prepared from the samples"),
        ({"num_stages": 1.5}, r"num_stages=1.5\): it must be in \[1, ∞\). Give a whole number"),
        ({"drop_truncated": "no"}, r"drop_truncated='no'\): it must be True or False"),
        ({"selection": None}, r"selection=None\): choose one of 'local'"),
        ({"improve_epochs": math.inf}, r"improve_epochs=inf\): it must be in \(0.0, ∞\)"),
    ],
)
def test_raft_config(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"thresholds": [0.7, 0.5]}, r"ReSTConfig\(selection='threshold', thresholds=\[0.7, 0.5\]\): expected rising"),
        ({"thresholds": [0.5, 0.5]}, "expected rising values"),
        ({"thresholds": [0.5, 1.1]}, r"expected rising values in \[0, 1\]"),
        ({"thresholds": []}, "expected a list with one value per Improve"),
        ({"acceptance_ratio": 0.1}, "only 'local' and 'global' keep a share; give `thresholds`"),
        ({"selection": "percentile", "thresholds": [50.0]}, r"rising values in \[0, 1\]"),
        (
            {"thresholds": 0.5},
            r"thresholds=0.5\): expected a list of numbers, got one value. Write thresholds=\[0.5\]",
        ),
        ({"thresholds": ["0.5"]}, r"thresholds=\['0.5'\]\): expected a list of numbers"),
        ({"thresholds": [math.nan]}, r"rising values in \[0, 1\]"),
        (
            {"improve_lr_factor": 0.3, "restart_from_base": True},
            r"improve_lr_factor=0.3, thresholds=\[0.0\]\): it does",
        ),
        ({"temperature": "hot"}, r"temperature='hot'\): it must be in \[0.0, ∞\)"),
    ],
)
def test_rest_config(changes, message):
    with pytest.raises(ValueError, match=message):
        config(ReSTConfig, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"importance_clip": 0.2, "acceptance_ratio": 0.5, "selection": "global"},
        {"importance_clip": 0.2, "beta": 0.1, "random_selection": True},
        {"importance_clip": 0.2, "max_kept_per_prompt": 1},
        {"selection": "global", "beta": 0.1, "random_selection": True},
        {"mix_dataset": True, "selection": "global", "max_kept_per_prompt": 8},
        {"level_stages": 0, "num_stages": 1},
        {"score_map": "grow", "beta": 0.1},
        {"score_map": "fixed", "score_range": [0.0, 5.0]},
        {"random_selection": True, "acceptance_ratio": 1.0, "max_kept_per_prompt": 2},
        {"random_selection": True, "acceptance_ratio": 1.0, "mix_dataset": True},
        {"random_selection": True, "selection": "percentile", "thresholds": [0.0, 0.5]},
        {"random_selection": True, "selection": "percentile", "thresholds": [0.0], "max_kept_per_prompt": 2},
        {"random_selection": True, "selection": "interpolation", "thresholds": [0.0]},
        {"drop_duplicates": False, "num_generations": 1, "mix_dataset": True},
        {"drop_alike": False, "num_generations": 1},
        {"temperature": 0.0, "min_p": 0.0},
        {"stage_batch_size": np.int64(4), "improve_epochs": np.float32(0.5), "num_stages": 2.0},
    ],
)
def test_options_that_do_something_yet(changes):
    config(**changes)


def test_em_of_one_stage_still_has_its_defaults():
    assert config(ReSTConfig, restart_from_base=True, num_stages=1).num_generations == 32


def test_thresholds_may_be_a_tuple():
    assert config(ReSTConfig, thresholds=(0.5, 0.7)).thresholds == [0.5, 0.7]


def test_papers_defaults():
    raft = config()
    assert (raft.stage_batch_size, raft.num_generations, raft.temperature, raft.learning_rate) == (2048, 8, 1.0, None)
    assert raft.fresh_optimizer and not raft.drop_alike and config(importance_clip=0.2).drop_alike
    rest = config(ReSTConfig)
    assert rest.score_map == "fixed"
    assert config(ReSTConfig, selection="percentile").score_map == "none"  # a prompt's own scores need no map
    assert rest.thresholds == [0.0, 0.7, 0.8, 0.9, 0.95, 0.99] and rest.temperature == 0.8 and rest.mix_dataset
    em = config(ReSTConfig, restart_from_base=True)
    assert (em.thresholds, em.temperature, em.top_k, em.num_generations) == ([0.0], 0.7, 40, 32)
    assert em.max_kept_per_prompt == 10 and not em.mix_dataset
    assert config(ReSTConfig, restart_from_base=True, temperature=1.0).temperature == 1.0  # what is given stays


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": []}, r"RAFTTrainer\(train_dataset=…\) is empty: expected at least one prompt"),
        ({"prompts": ["a", ""]}, r"the prompt of row 1 is '': expected text or messages"),
        ({"columns": {"image": [None] * 8}}, "images are not supported"),
        ({"reward_funcs": None}, r"RAFTTrainer\(reward_funcs=None\): expected a reward, or a list of them"),
        ({"reward_funcs": [3]}, r"RAFTTrainer\(reward_funcs=…\): 3 is neither a function nor a reward model"),
        (
            {"reward_weights": [1.0, 2.0]},
            r"reward_weights=\[1.0, 2.0\]: expected one per reward function \(1\), got 2",
        ),
        ({"reward_weights": [float("nan")]}, r"RAFTConfig\(reward_weights=\[nan\]\): expected finite numbers"),
        ({"reward_weights": []}, r"reward_weights=\[\]: expected one per reward function \(1\), got 0"),
        ({"formatting_func": str}, r"RAFTTrainer\(formatting_func=…\): rows are made from samples"),
        ({"data_collator": list}, r"RAFTTrainer\(data_collator=…\): rows are made from samples"),
        (
            {"compute_loss_func": len},
            r"RAFTTrainer\(compute_loss_func=…\): rows .* the loss is the method's. Leave it",
        ),
        ({"compute_metrics": len}, r"RAFTTrainer\(compute_metrics=…\): rows are made from samples"),
        ({"preprocess_logits_for_metrics": max}, r"RAFTTrainer\(preprocess_logits_for_metrics=…\): rows are made"),
        ({"reward_funcs": []}, r"RAFTTrainer\(reward_funcs=\[\]\): expected a reward, or a list of them"),
        (
            {"eval_strategy": "epoch"},
            r"RAFTTrainer\(eval_dataset=None\) with eval_strategy='epoch': expected held-out",
        ),
        ({"eval_dataset": ["a"]}, r"RAFTTrainer\(eval_dataset=…\): expected a datasets.Dataset .* got list"),
    ],
)
def test_trainer_arguments(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, **options)


def test_sharding_asked_for_by_accelerate_is_refused(tmp_path, sharding_asked_for):
    with pytest.raises(ValueError, match=r"RAFTTrainer runs on one device.*shard the model that is sampled from"):
        trainer(tmp_path)


def test_offloading_without_a_card(tmp_path):
    with pytest.raises(ValueError, match=r"RAFTConfig\(activation_offloading=True\) on a CPU: .* Leave it out"):
        trainer(tmp_path, activation_offloading=True)


def test_an_argument_that_nobody_knows(tmp_path):
    with pytest.raises(TypeError, match=r"RAFTTrainer.__init__\(\) got an unexpected keyword argument 'ref_model'"):
        trainer(tmp_path, ref_model=None)


def test_what_sft_trainer_takes_is_taken_or_refused_by_name():
    """An argument that a new TRL adds shows here."""
    ours = set(inspect.signature(RAFTTrainer).parameters)
    assert set(inspect.signature(SFTTrainer.__init__).parameters) - {"self"} - ours == set(REFUSED)


def test_rows_without_prompts(tmp_path):
    one = trainer(tmp_path)
    with pytest.raises(ValueError, match=r"has columns \['text'\]: expected a column `prompt`. Rename yours"):
        RAFTTrainer(one.model, even_letters, one.args, Dataset.from_dict({"text": PROMPTS}))
    with pytest.raises(ValueError, match=r"expected a datasets.Dataset with a column `prompt`, got NoneType"):
        RAFTTrainer(one.model, even_letters, one.args)


def test_prompts_of_another_shape(tmp_path):
    """Wherever they come in; the shapes are those of test_prompt_rows.py."""
    one = trainer(tmp_path)
    bad = Dataset.from_dict({"prompt": [[{"from": "human", "value": "What is 2+2?"}]] * 8})
    message = r"=…\): the prompt of row 0 is \[{'from': .* messages of ShareGPT's. Convert it: dataset = "
    with pytest.raises(ValueError, match=r"RAFTTrainer\(train_dataset" + message):
        RAFTTrainer(one.model, even_letters, one.args, bad)
    for give in (lambda rows: trainer(tmp_path, eval_dataset=rows), one.evaluate):
        with pytest.raises(ValueError, match=r"RAFTTrainer\(eval_dataset" + message):
            give(bad)
    with pytest.raises(ValueError, match=r"expected one data set, got a dict of \['train'\]. Give one of them"):
        RAFTTrainer(one.model, even_letters, one.args, {"train": bad})


def test_completions_of_another_shape_than_their_prompts(tmp_path):
    answers = {"completion": [None, *[[{"role": "assistant", "content": "no"}]] * 7]}
    trainer(tmp_path, columns=answers)  # which does not read them
    with pytest.raises(ValueError, match=r"train_dataset=…\): the completion of row 1 is .* and its prompt is text"):
        trainer(tmp_path, columns=answers, mix_dataset=True)
    with pytest.raises(ValueError, match=r"eval_dataset=…\): the completion of row 0 is 4: .* of type int"):
        trainer(tmp_path, eval_dataset=Dataset.from_dict({"prompt": ["a"], "completion": [4]}))


def test_parts_of_text_are_text(tmp_path):
    """A Grow's table has one type of content, and the policy's answers are text."""
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    one = trainer(tmp_path, prompts=[parts] * 4, num_stages=1, reward_funcs=lambda prompts, **_: [1.0] * len(prompts))
    one.train()
    rows = pq.read_table(one.grower.files(0).finished).to_pylist()
    assert rows[0]["prompt"] == [{"role": "user", "content": "ab"}]


def test_configs_of_others(tmp_path):
    one, prompts = trainer(tmp_path), Dataset.from_dict({"prompt": PROMPTS})
    with pytest.raises(ValueError, match=r"RAFTTrainer\(args=SFTConfig\(…\)\): expected a RAFTConfig. Write that"):
        RAFTTrainer(one.model, even_letters, SFTConfig("unused", bf16=False), prompts)
    with pytest.raises(ValueError, match=r"ReSTTrainer\(args=RAFTConfig\(…\)\): expected a ReSTConfig"):
        ReSTTrainer(one.model, even_letters, one.args, prompts)


def test_options_that_would_do_nothing_together(tmp_path):
    held_out = Dataset.from_dict({"prompt": ["a"]})
    options = {"keep_best": True, "eval_strategy": "steps", "eval_steps": 9, "improve_steps": 9}
    with pytest.raises(ValueError, match=r"eval_steps=9: an Improve has 9 steps, so it would not be evaluated before"):
        trainer(tmp_path, eval_dataset=held_out, **options)
    file = tmp_path / "samples.jsonl"
    file.write_text('{"prompt": "go", "completion": " on"}\n')
    with pytest.raises(
        ValueError, match=r"generator='file:samples.jsonl'\) with importance_clip=0.2: its samples are"
    ):
        trainer(tmp_path, importance_clip=0.2, generator=FileGenerator(file))
    for name, value in {"temperature": 0.5, "top_k": 5, "generation_batch_size": 4}.items():
        message = rf"generator='file:samples.jsonl'\), {name}={value}: that generator does not read it"
        with pytest.raises(ValueError, match=message):
            trainer(tmp_path, generator=FileGenerator(file), **{name: value})
        trainer(tmp_path, generator=FileGenerator(file), eval_dataset=held_out, **{name: value})
    trainer(tmp_path, ReSTTrainer, generator=FileGenerator(file))  # has a temperature of its own by default
    with pytest.raises(ValueError, match=r"mix_dataset=True: it has no column `completion` to mix in. Add one"):
        trainer(tmp_path, mix_dataset=True)
    with pytest.raises(
        ValueError, match=r"mix_dataset=True: its column `completion` is None in all rows. Add answers"
    ):
        trainer(tmp_path, mix_dataset=True, columns={"completion": [None] * 8})
    trainer(tmp_path, mix_dataset=True, columns={"completion": [None] * 7 + [" on"]})
    patience = {"improve_patience": 4, "eval_strategy": "steps", "eval_steps": 2, "improve_steps": 9}
    with pytest.raises(
        ValueError, match=r"improve_patience=4, eval_steps=2: an Improve has 9 steps, so it would be over"
    ):
        trainer(tmp_path, eval_dataset=held_out, **patience)
    missing = Dataset.from_dict({"prompt": ["a", "b"], "completion": ["x", None]})
    with pytest.raises(ValueError, match=r"eval_dataset=…\): the completion of row 1 is None"):
        trainer(tmp_path, eval_dataset=missing)
    with pytest.raises(ValueError, match=r"expected a schedule that is a function of the step"):
        plateau = {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "epoch", "eval_dataset": held_out}
        trainer(tmp_path, **plateau).train()


def test_a_config_may_be_copied_with_changes(tmp_path):
    assert dataclasses.replace(trainer(tmp_path, num_stages=2).args, beta=0.1).num_train_epochs == 3.0
    assert dataclasses.replace(config(num_stages=3), num_stages=5).improves == 5
    assert not config(ReSTConfig, importance_clip=0.2).mix_dataset  # what is in the data set has no ratio
    with pytest.raises(
        ValueError, match=r"mix_dataset=True, importance_clip=0.2\): .* were not sampled from the policy"
    ):
        dataclasses.replace(config(ReSTConfig), importance_clip=0.2)


def test_scores_outside_the_range_of_their_map_are_warned_of(tmp_path):
    def large(completions, **columns):
        return [10.0 + score for score in even_letters(completions)]

    one = trainer(tmp_path, ReSTTrainer, reward_funcs=large, thresholds=[0.5], num_stages=1)
    with pytest.warns(
        UserWarning, match=r"100% of the scores of stage 1 lie outside score_range=\[0, 1\] .*'running'"
    ):
        one.train()


def test_prompts_without_a_difference_are_named_where_they_leave_nothing(tmp_path):
    def alike(completions, **columns):
        return [1.0] * len(completions)

    one = trainer(tmp_path, reward_funcs=alike, importance_clip=0.2, num_stages=1)
    with pytest.raises(ValueError, match=r"left out beforehand: .*'alike': 32"):
        one.train()


def test_rewards_that_score_nothing_are_named(tmp_path):
    """And not what is cut, which may be kept, nor thresholds, which there are none of."""

    def silent(completions, **columns):
        return [None] * len(completions)

    one = trainer(tmp_path, reward_funcs=silent, num_stages=1, max_completion_length=1)
    said = r"No sample has a score; left out beforehand: {'unscored': 32}\. A sample is unscored where each reward"
    with pytest.raises(ValueError, match=said):
        one.train()


def test_a_policy_that_never_ends_is_told_its_cures(tmp_path):
    never = never_ending(tiny_llama(byte_tokenizer()))
    one = trainer(tmp_path / "drops", model=never, drop_truncated=True, num_stages=1)
    cures = r"'truncated': 32.*give drop_truncated=False.*larger max_completion_length.*eos_token.*FileGenerator\("
    with pytest.raises(ValueError, match=cures):
        one.train()
    grow = FileGenerator(tmp_path / "drops" / "grow-000.parquet")
    trainer(tmp_path / "keeps", drop_truncated=False, num_stages=1, generator=grow).train()  # as it says


def test_a_scheduler_of_ones_own(tmp_path):
    optimizer = torch.optim.SGD(tiny_llama(byte_tokenizer()).parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    with pytest.raises(
        ValueError, match=r"optimizers=\(…, scheduler\)\): the learning rate falls within each Improve"
    ):
        trainer(tmp_path, optimizers=(optimizer, scheduler))


def test_a_frozen_adapter(tmp_path):
    model = get_peft_model(tiny_llama(byte_tokenizer()), LoraConfig(target_modules="all-linear"))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match=r"RAFTTrainer\(model=PeftModel\): the adapter is frozen"):
        trainer(tmp_path, model=model)


def test_a_prompt_beyond_the_window(tmp_path):
    message = (
        r"_dataset=…\): the prompt of row 0 has 251 tokens, which with max_completion_length=6 passes the model's"
    )
    with pytest.raises(ValueError, match=rf"RAFTTrainer\(train{message} window of 256"):
        trainer(tmp_path, prompts=["a" * 251, *PROMPTS])
    with pytest.raises(ValueError, match=rf"RAFTTrainer\(eval{message}"):
        trainer(tmp_path, eval_dataset=Dataset.from_dict({"prompt": ["a" * 251]}))
    trainer(tmp_path, prompts=["a" * 250])  # fits


def test_a_prompt_beyond_the_window_by_an_option_of_the_template(tmp_path):
    options = {"prompts": [[{"role": "user", "content": "a" * 244}]], "processing_class": tokenizer_with_options()}
    trainer(tmp_path, **options)
    with pytest.raises(ValueError, match="prompt of row 0 has 253 tokens"):
        trainer(tmp_path, chat_template_kwargs={"shout": True}, **options)


# A reward that returns NaN for one sample


def one_nan(completions, prompts, **columns):
    scores = even_letters(completions)
    return [
        math.nan if prompt == "go" and i % 4 == 1 else s
        for i, (prompt, s) in enumerate(zip(prompts, scores, strict=True))
    ]


def test_a_score_that_is_no_number_stops_the_run_and_is_named(tmp_path):
    one = trainer(tmp_path, reward_funcs=one_nan)
    with pytest.raises(ValueError, match=r"Reward function 'one_nan' returned nan for row \d+ \(completion '"):
        one.train()


def test_a_score_that_is_no_number_drops_its_row_by_option(tmp_path):
    one = trainer(tmp_path, reward_funcs=[one_nan, even_letters], invalid_scores="drop", num_stages=1)
    with pytest.warns(UserWarning, match=r"1 of 12 samples .* 'one_nan' .* row 3, sample 1"):
        one.train()
    rows = pq.read_table(one.grower.files(0).finished).to_pylist()
    (bad,) = [row for row in rows if row["score"] is None]  # though the other reward has scored it
    assert (bad["prompt"], bad["sample"], bad["kept"]) == ("go", 1, 0)
    assert math.isnan(bad["reward/one_nan"]) and not math.isnan(bad["reward/even_letters"])
    assert logged(one, "grow/unscored") == [1] and logged(one, "grow/invalid") == [1]


def test_none_means_that_a_reward_does_not_apply(tmp_path):
    def sometimes(completions, prompts, **columns):
        return [None if prompt == "go" else 1.0 for prompt in prompts]

    one = trainer(tmp_path, reward_funcs=[sometimes, even_letters], reward_weights=[1.0, 2.0], num_stages=1)
    one.train()
    for row in pq.read_table(one.grower.files(0).finished).to_pylist():
        assert row["score"] == pytest.approx(2 * row["reward/even_letters"] + (row["prompt"] != "go"))


def test_the_loop_itself_takes_its_own_config():
    assert SelfTrainingConfig("unused", bf16=False, report_to="none").num_stages == 10
