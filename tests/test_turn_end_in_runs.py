"""Whoever samples from messages stops where the turn is closed, and so does whoever is given the saved model."""

import json
import warnings
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch
from peft import LoraConfig
from ppo_case import ppo_trainer, rollout_of, several_end_tokens
from self_training_case import trainer as raft_trainer
from tiny import tiny_reward_model
from transformers import AutoModelForCausalLM, GenerationConfig
from turn_case import TURN_END, answer_of, chat_llama, chat_tokenizer, messages, turn_end_of

from trl_ext import LearnedReward, SharedBase
from trl_ext.cli import main
from trl_ext.generation.protocol import Part, Policy, Sampling
from trl_ext.generation.transformers_generator import TransformersGenerator
from trl_ext.generation.vllm_requests import request_of
from trl_ext.ppo.stop_tokens import set_end_tokens
from trl_ext.trainer_kit.trl_versions import add_end_tokens, end_tokens

TOKENIZER = chat_tokenizer()
END = turn_end_of(TOKENIZER)
CHATS = messages("say it", "why?", "tell me more", "go") * 4
SOON, AT_ONCE = 1.0, 4.0  # with about every sixth token that is sampled; with the first
ANNOUNCED = r"closes an assistant's turn with '<end_of_turn>'"


def ids_of(chat) -> list[int]:
    return Policy(None, TOKENIZER).prompt_ids(chat)


def in_config(folder) -> list[int]:
    return GenerationConfig.from_pretrained(folder).eos_token_id


def same_score(completions, **columns):
    return [1.0] * len(completions)


def stops_there(folder) -> bool:
    """Whether the saved model, loaded by transformers alone, answers with the turn's end and no more."""
    return answer_of(AutoModelForCausalLM.from_pretrained(folder), ids_of(CHATS[0])) == [END]


def test_without_it_the_model_would_go_on():
    assert answer_of(chat_llama(AT_ONCE), ids_of(CHATS[0])) == [END] * 6


# -- PPO


@several_end_tokens
def test_ppo(tmp_path):
    ended = []

    def note(completions, completion_ended, **columns):
        ended.extend(completion_ended)
        return [0.0] * len(completions)

    options = {"model": chat_llama(SOON), "processing_class": TOKENIZER, "reward_funcs": note, "prompts": CHATS}
    with pytest.warns(UserWarning, match=f"PPOTrainer: .*{ANNOUNCED}") as said:
        trainer = ppo_trainer(tmp_path, max_completion_length=8, **options)
    assert sum("closes an assistant's turn" in str(warning.message) for warning in said) == 1
    rollout = rollout_of(trainer, [{"prompt": chat} for chat in CHATS])
    for ids, mask, has_ended in zip(rollout["completion_ids"], rollout["completion_mask"], ended, strict=True):
        own = ids[mask.bool()].tolist()
        assert END not in own[:-1] and has_ended == (own[-1] in (1, END))
    assert END in rollout["completion_ids"] and 1 < rollout["completion_mask"].sum(1).float().mean() < 8


@several_end_tokens
def test_what_ppo_saves_stops_there(tmp_path):
    options = {"model": chat_llama(AT_ONCE), "processing_class": TOKENIZER, "prompts": CHATS, "learning_rate": 1e-6}
    options["reward_funcs"] = same_score
    trainer = ppo_trainer(tmp_path, save_strategy="steps", save_steps=1, max_steps=1, **options)
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    for folder in (tmp_path / "saved", tmp_path / "checkpoint-1"):
        assert in_config(folder) == [1, END] and stops_there(folder)


@several_end_tokens
def test_an_adapter_alone_has_no_generation_config(tmp_path):
    options = {"processing_class": TOKENIZER, "prompts": CHATS, "peft_config": LoraConfig(target_modules=["q_proj"])}
    trainer = ppo_trainer(tmp_path, model=chat_llama(SOON), **options)
    assert end_tokens(trainer) == [1, END]
    trainer.save_model(tmp_path / "saved")
    assert (tmp_path / "saved" / "adapter_config.json").is_file()
    assert not (tmp_path / "saved" / "generation_config.json").exists()


def test_ppo_on_text_is_as_without_a_template(tmp_path):
    rollouts = []
    for template in (TOKENIZER.chat_template, None):
        with warnings.catch_warnings(record=True) as said:
            trainer = ppo_trainer(
                tmp_path, model=chat_llama(SOON), processing_class=chat_tokenizer(template), max_completion_length=12
            )
        assert not [warning for warning in said if "assistant's turn" in str(warning.message)]
        assert end_tokens(trainer) == [1] and trainer.model.generation_config.eos_token_id == 1
        rollouts.append(rollout_of(trainer))
    assert all(torch.equal(rollouts[0][name], rollouts[1][name]) for name in ("completion_ids", "advantages"))
    assert (rollouts[0]["completion_ids"][:, :-1] == END).any()  # and it went on


def test_nothing_is_said_where_the_turns_end_is_the_end_token(tmp_path):
    with warnings.catch_warnings(record=True) as said:
        trainer = ppo_trainer(
            tmp_path, model=chat_llama(SOON), processing_class=chat_tokenizer(eos=TURN_END), prompts=CHATS
        )
    assert not [warning for warning in said if "assistant's turn" in str(warning.message)]
    assert END in end_tokens(trainer)


def test_a_trl_that_knows_one_end_token_says_what_to_do(tmp_path):
    trainer = ppo_trainer(tmp_path, model=chat_llama(SOON), processing_class=TOKENIZER, prompts=CHATS)
    vars(trainer).pop("eos_token_ids", None)  # which TRL 1.12 has not
    with pytest.warns(UserWarning, match=f"{ANNOUNCED}.*'<eos>' only.*Upgrade TRL, or set tokenizer.eos_token='<end_"):
        set_end_tokens(trainer)
    assert end_tokens(trainer) == [1]


def test_ppos_vllm_is_told():
    engine = SimpleNamespace(generation_kwargs={"stop_token_ids": [7], "seed": 3})
    trainer = SimpleNamespace(eos_token_ids=[1], use_vllm=True, vllm_generation=engine)
    add_end_tokens(trainer, [END])
    assert trainer.eos_token_ids == [1, END]
    assert engine.generation_kwargs == {"stop_token_ids": [7, END], "seed": 3}


# -- RAFT


def test_raft(tmp_path):
    options = {"processing_class": TOKENIZER, "prompts": CHATS[:8], "save_strategy": "epoch", "learning_rate": 1e-6}
    options["reward_funcs"] = same_score
    with pytest.warns(UserWarning, match=f"RAFTTrainer: .*{ANNOUNCED}") as said:
        trainer = raft_trainer(tmp_path, model=chat_llama(AT_ONCE), **options)
        trainer.train()
    assert sum("closes an assistant's turn" in str(warning.message) for warning in said) == 1
    samples = pq.read_table(tmp_path / "grow-000.parquet").to_pylist()
    assert all(sample["completion_ids"] == [END] and sample["ended"] for sample in samples)
    trainer.save_model(tmp_path / "saved")
    checkpoints = list(tmp_path.glob("checkpoint-*"))
    for folder in (tmp_path / "saved", *checkpoints):
        assert in_config(folder) == [1, END] and stops_there(folder)
    assert checkpoints


def test_raft_on_text_is_as_before(tmp_path):
    trainer = raft_trainer(tmp_path, model=chat_llama(AT_ONCE), processing_class=TOKENIZER, num_stages=1)
    trainer.train()
    assert trainer.model.generation_config.eos_token_id in (1, [1])  # transformers makes a list of it
    samples = pq.read_table(tmp_path / "grow-000.parquet").to_pylist()
    assert all(sample["completion_ids"] == [END] * 6 and not sample["ended"] for sample in samples)


# -- generators


def sample(*prompts, strength=SOON, **sampling):
    policy = Policy(chat_llama(strength), TOKENIZER)
    sampling = Sampling(num_generations=4, max_completion_length=8, **sampling)
    ((_, samples),) = TransformersGenerator().generate(
        [Part(0, tuple(range(len(prompts))), prompts)], sampling, policy
    )
    return samples


def test_the_transformers_generator():
    with pytest.warns(UserWarning, match=ANNOUNCED) as said:
        samples = sample(*CHATS[:4])
    assert len(said) == 1
    for one in samples:
        assert END not in one["completion_ids"][:-1]
        assert one["ended"] == (one["completion_ids"][-1] in (1, END))
    assert {one["ended"] for one in samples} == {True, False}


def test_the_transformers_generator_on_text():
    with warnings.catch_warnings(action="error"):
        samples = sample("say it", strength=AT_ONCE, temperature=0.0)
    assert [one["completion_ids"] for one in samples] == [[END] * 8] * 4


@pytest.mark.parametrize(("prompts", "ends"), [(tuple(CHATS[:2]), [1, END]), (("say it", "why?"), [1])])
@pytest.mark.filterwarnings("ignore:Policy.end_token_ids")
def test_vllm_is_told(prompts, ends):
    policy = Policy(chat_llama(SOON), TOKENIZER)
    request = request_of([Part(0, (0, 1), prompts)], Sampling(), policy, prompts_at_once=128)
    assert request["end_token_ids"] == ends


def test_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chat_llama(AT_ONCE).save_pretrained("model")
    TOKENIZER.save_pretrained("model")
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": chat}) + "\n" for chat in CHATS[:4]))
    with pytest.warns(UserWarning, match=ANNOUNCED):
        main(
            [
                "generate",
                "--prompts",
                "prompts.jsonl",
                "--output",
                "out.parquet",
                "--model",
                "model",
                "--device",
                "cpu",
                "--temperature",
                "0",
                "--num-generations",
                "1",
                "--max-completion-length",
                "6",
            ]
        )
    assert [one["completion_ids"] for one in pq.read_table("out.parquet").to_pylist()] == [[END]] * 4


# -- a merged model, and a reward model


def test_a_merged_model_stops_there(tmp_path):
    base = SharedBase(chat_llama(AT_ONCE), TOKENIZER)
    base.policy(name="trained").save_pretrained(tmp_path / "adapter")
    with pytest.warns(UserWarning, match=f"merge.*{ANNOUNCED}"):
        merged = base.merge(tmp_path / "adapter", tmp_path / "merged")
    assert in_config(merged.path) == [1, END] and stops_there(merged.path)
    assert base.model.generation_config.eos_token_id == 1


def test_a_run_on_one_role_leaves_the_base_alone(tmp_path):
    base = SharedBase(chat_llama(SOON), TOKENIZER)
    policy = base.policy()
    raft_trainer(tmp_path, model=policy, processing_class=TOKENIZER, prompts=CHATS)
    assert policy.generation_config.eos_token_id == [1, END]
    assert base.model.generation_config.eos_token_id == base.policy(name="next").generation_config.eos_token_id == 1


def test_a_reward_model_knows_it():
    reward = LearnedReward(tiny_reward_model(TOKENIZER), TOKENIZER)
    assert reward._ended([[5, END], [5, 1], [END, 5]]) == [True, True, False]
    assert LearnedReward(tiny_reward_model(TOKENIZER), TOKENIZER, eos_token_ids=1)._ended([[5, END]]) == [False]
