"""From TRL's own PPO: each of its options and calls is here under its name, or raises with what takes its place."""

import copy
import functools
import inspect
import pickle
import re
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from parity_case import FIXTURE
from ppo_case import CONFIG_FIELDS, PROMPTS, even_letters, ppo_trainer
from tiny import byte_tokenizer, tiny_llama, tiny_reward_model
from trl import GRPOTrainer, TrlParser

from trl_ext import PPOConfig, PPOTrainer
from trl_ext.cli import main
from trl_ext.ppo.migration import ARGUMENTS, RENAMED, REPLACED, THREE_LINES

UNTIL_0_11 = {  # fields of 0.11.4's PPOConfig
    "exp_name", "seed", "log_with", "task_name", "model_name", "query_dataset", "reward_model", "remove_unused_columns",
    "tracker_kwargs", "accelerator_kwargs", "project_kwargs", "tracker_project_name", "push_to_hub_if_best_kwargs",
    "steps", "learning_rate", "adap_kl_ctrl", "init_kl_coef", "kl_penalty", "target", "horizon", "gamma", "lam",
    "cliprange", "cliprange_value", "vf_coef", "batch_size", "forward_batch_size", "mini_batch_size",
    "gradient_accumulation_steps", "world_size", "ppo_epochs", "max_grad_norm", "optimize_cuda_cache",
    "optimize_device_cache", "early_stopping", "target_kl", "compare_steps", "ratio_threshold", "use_score_scaling",
    "use_score_norm", "score_clip", "whiten_rewards", "gradient_checkpointing", "is_encoder_decoder", "is_peft_model",
    "backward_batch_size", "global_backward_batch_size", "global_batch_size", "dataset_num_proc",
}  # fmt: skip
ON_CPU = ["--output_dir", "unused", "--bf16", "False", "--report_to", "none"]
OLD = {**RENAMED, **REPLACED}
README = (Path(__file__).parents[1] / "trl_ext" / "ppo" / "README.md").read_text()


def table() -> dict[str, str]:
    """The README's: what stands beside each option of TRL's PPO."""
    section = re.search(r"## From TRL's PPO.*", README, re.S).group()
    rows = re.findall(r"^\| (`.*?) \| (.*) \|$", section, re.M)
    return {name: row[1] for row in rows for name in re.findall(r"`(\w+)`", row[0])}


# Options


@pytest.mark.parametrize("name", FIXTURE["options"])
def test_every_option_of_1_12_is_kept_or_answered_and_in_the_table(name):
    assert (name in CONFIG_FIELDS) != (name in OLD)
    beside = table()[name]
    assert name not in CONFIG_FIELDS or beside.startswith("same")
    assert name not in RENAMED or f"`{RENAMED[name]}`" in beside


@pytest.mark.parametrize("name", sorted(UNTIL_0_11))
def test_every_option_of_0_11_is_kept_or_answered(name):
    assert (name in CONFIG_FIELDS) != (name in OLD)


def test_every_answer_is_of_an_option_that_there_was():
    assert set(OLD) <= set(FIXTURE["options"]) | UNTIL_0_11
    assert set(RENAMED.values()) <= CONFIG_FIELDS
    named = {word for answer in REPLACED.values() for word in re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", answer)}
    outside = {
        "convert_ids_to_tokens",
        "reward_funcs",
        "train_dataset",
        "peft_config",
    }  # of a tokenizer, of PPOTrainer
    assert named - outside <= CONFIG_FIELDS | set(OLD)


@pytest.mark.parametrize("name", OLD)
def test_old_options_raise_with_the_new(name):
    with pytest.raises(ValueError, match=rf"PPOConfig\({name}=1\): of TRL's own PPO. `{name}` is now \S+"):
        PPOConfig(output_dir="unused", **{name: 1})
    assert name not in RENAMED or RENAMED[name] in CONFIG_FIELDS


def test_all_old_options_are_answered_at_once():
    message = (
        r"kl_coef=0.1, vf_coef=0.2\).*`kl_coef` is now `beta`; `vf_coef` is now `value_coef`\. trl_ext/ppo/README.md"
    )
    with pytest.raises(ValueError, match=message):
        PPOConfig("unused", kl_coef=0.1, gamma=0.9, vf_coef=0.2)


def test_old_options_on_the_command_line_and_in_a_file(tmp_path):
    """TrlParser refuses what is no field, before there is a config: it names the option, the table has the new name."""
    with pytest.raises(ValueError, match="--kl_coef"):
        TrlParser(PPOConfig).parse_args_and_config([*ON_CPU, "--kl_coef", "0.1"])
    (tmp_path / "config.yaml").write_text("kl_coef: 0.1\n")
    with pytest.raises(ValueError, match="kl_coef"):
        TrlParser(PPOConfig).parse_args_and_config([*ON_CPU, "--config", str(tmp_path / "config.yaml")])


@pytest.mark.parametrize("name", OLD)
def test_the_command_says_what_an_old_option_is_now(name, tmp_path, capsys):
    """Flags and YAML alike; another command has no such past."""
    for call in (["ppo", f"--{name}", "1"], ["ppo", f"--{name.replace('_', '-')}=1"]):
        with pytest.raises(SystemExit):
            main(call)
        told = capsys.readouterr().err
        assert f"`{name}`, of TRL's own PPO, is now" in told and "PPOTrainer" not in told
        assert name not in RENAMED or f"is now `{RENAMED[name]}`." in told
    (tmp_path / "old.yaml").write_text(f"{name}: 1\n")
    with pytest.raises(SystemExit):
        main(["ppo", "--config", str(tmp_path / "old.yaml")])
    assert f"`{name}`, of TRL's own PPO, is now" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["reward", f"--{name}_", "1"])
    assert "TRL's own PPO" not in capsys.readouterr().err


def test_a_config_is_copied_and_pickled_as_before():
    args = PPOConfig("unused", bf16=False, report_to="none", gamma=0.9)
    for other in (copy.copy(args), copy.deepcopy(args), pickle.loads(pickle.dumps(args))):
        assert (type(other), other.gamma) == (PPOConfig, 0.9)
    with pytest.raises(TypeError, match="no_such_option"):
        PPOConfig("unused", no_such_option=1)


# Calls


@pytest.mark.parametrize("name", ARGUMENTS)
def test_old_arguments_raise_with_the_new(tmp_path, name):
    with pytest.raises(ValueError, match=rf"PPOTrainer\({name}=…\): of TRL's own PPO. `{name}` is now") as raised:
        ppo_trainer(tmp_path, **{name: object()})
    assert THREE_LINES in str(raised.value)


def test_positional_construction_of_0_11_and_of_1_12_raise():
    args, tokenizer = PPOConfig("unused", bf16=False, report_to="none"), byte_tokenizer()
    model, scorer = tiny_llama(tokenizer), tiny_reward_model(tokenizer)
    until_0_11 = (args, model, None, tokenizer)
    until_1_12 = (args, tokenizer, model, None, scorer, Dataset.from_dict({"input_ids": [[3]]}), scorer)
    for call in (until_0_11, until_1_12):
        with pytest.raises(
            ValueError, match=r"PPOTrainer\(PPOConfig\(…\), …\): the order.*Expected the model"
        ) as raised:
            PPOTrainer(*call)
        assert THREE_LINES in str(raised.value)


def test_arguments_stand_in_grpos_order(tmp_path):
    """By position as by name, as far as nothing is left out that GRPOTrainer has in between."""
    theirs, ours = (list(inspect.signature(kind.__init__).parameters.values()) for kind in (GRPOTrainer, PPOTrainer))
    by_position = [p.name for p in ours if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert by_position == [p.name for p in theirs][: len(by_position)] and by_position[-1] == "peft_config"
    own = {"rollout_func", "generator", "value_model", "ptx_dataset"}
    assert {p.name for p in ours if p.kind is p.KEYWORD_ONLY} == own
    args = ppo_trainer(tmp_path).args
    data, held_out = (Dataset.from_dict({"prompt": prompts}) for prompts in (PROMPTS, ["a"]))
    trainer = PPOTrainer(tiny_llama(byte_tokenizer()), even_letters, args, data, held_out, byte_tokenizer())
    assert trainer.eval_dataset is held_out and trainer.processing_class.vocab_size == byte_tokenizer().vocab_size


def test_an_unknown_argument_is_named(tmp_path):
    with pytest.raises(TypeError, match="no_such_argument"):
        ppo_trainer(tmp_path, no_such_argument=1)


def test_model_with_trls_value_head_raises():
    class AutoModelForCausalLMWithValueHead(torch.nn.Module):
        pass

    wrapped = AutoModelForCausalLMWithValueHead()
    for call in (lambda: PPOTrainer(wrapped, even_letters), lambda: PPOTrainer(model=wrapped)):
        with pytest.raises(ValueError, match=r"expected the causal LM itself\. Give its `pretrained_model`"):
            call()


def test_step_raises_with_three_lines_that_run(tmp_path, monkeypatch):
    """What the error says to write is run as it is printed."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match=r"PPOTrainer.step\(queries, responses, rewards\): of TRL until 0.11"
    ) as raised:
        ppo_trainer(tmp_path).step([torch.tensor([3])], [torch.tensor([4])], [torch.tensor(1.0)])
    lines = [line.strip() for line in str(raised.value).splitlines()[1:]]
    assert len(lines) == 3
    options = {"bf16": False, "report_to": "none", "max_steps": 1, "max_completion_length": 4}
    model = tiny_llama(byte_tokenizer())
    model.save_pretrained("policy")
    byte_tokenizer().save_pretrained("policy")
    names = {
        "PPOTrainer": PPOTrainer,
        "PPOConfig": functools.partial(PPOConfig, disable_tqdm=True, **options),
        "model": "policy",
        "prompts": Dataset.from_dict({"prompt": PROMPTS}),
    }
    exec("\n".join(lines), names)
    assert names["trainer"].state.global_step == 1
