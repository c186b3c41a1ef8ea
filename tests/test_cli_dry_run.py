"""What a dry run finds in folders, without a weight: rewards, value models, modules for LoRA, the output folder, lengths."""

from pathlib import Path

import pytest
from cli_case import folder_here, refused, write_rows  # noqa: F401 - the fixture `here`
from peft import LoraConfig, get_peft_model
from tiny import byte_tokenizer, tiny_llama, tiny_reward_model

from trl_ext.cli import main
from trl_ext.trainer_kit.run_record import write_record

pytestmark = pytest.mark.usefixtures("unloaded")
PROMPTS = [{"prompt": f"say {word}"} for word in ("it", "that", "so", "more")] * 4
PAIRS = [{"prompt": f"say {i}", "chosen": " yes, and so", "rejected": " no"} for i in range(8)]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder, tokenizer = tmp_path_factory.mktemp("dry"), byte_tokenizer()
    two = tiny_reward_model(tokenizer, num_labels=2)
    models = {"model": tiny_llama(tokenizer), "scorer": tiny_reward_model(tokenizer), "two": two}
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    tiny_reward_model(tokenizer).save_pretrained(folder / "wordless")
    (folder / "empty").mkdir()
    for kind, model in (("SEQ_CLS", tiny_reward_model(tokenizer)), ("CAUSAL_LM", tiny_llama(tokenizer))):
        adapted = get_peft_model(model, LoraConfig(task_type=kind, target_modules="all-linear"))
        adapted.peft_config["default"].base_model_name_or_path = str(folder / "model")
        adapted.save_pretrained(folder / f"adapter-{kind}")
    for name, rows in (("prompts", PROMPTS), ("pairs", PAIRS)):
        write_rows(folder / f"{name}.jsonl", rows)
    return folder


@pytest.fixture
def unloaded(monkeypatch):
    monkeypatch.setattr("trl_ext.cli.training_command.Roles", None)  # which loads


PPO = (
    "ppo --model_name_or_path model --dataset_name prompts.jsonl --output_dir out --max_completion_length 4 --dry_run"
)
PPO += " --per_device_train_batch_size 4"
REWARD = "reward --model_name_or_path model --dataset_name pairs.jsonl --output_dir out --dry_run"


@pytest.mark.parametrize("reward", ["scorer", "adapter-SEQ_CLS"])
def test_a_reward_model_is_taken(reward, here, capsys):
    main([*PPO.split(), "--reward_funcs", reward, "--value_model", reward])
    assert "⟦say it⟧" in capsys.readouterr().out and not (here / "out").exists()


def test_a_value_model_may_lack_a_head(here, capsys):
    main([*PPO.split(), "--reward_funcs", "scorer", "--value_model", "model"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "model",
            "--reward_funcs model: expected a reward model, and it has no head for scores: it is a LlamaForCausalLM",
        ),
        ("adapter-CAUSAL_LM", "--reward_funcs adapter-CAUSAL_LM: expected a reward model"),
        ("two", "--reward_funcs two: expected a reward model of one label, got 2."),
        ("wordless", "--reward_funcs wordless: found no tokenizer"),
        ("empty", "--reward_funcs empty: it cannot be loaded"),
        ("repetition_penalty", "there is no folder of that name. Did you mean RepetitionPenalty?"),
    ],
)
def test_what_is_no_reward_model(name, message, here, capsys):
    assert message in refused(capsys, *PPO.split(), "--reward_funcs", name)


def test_a_reward_model_that_is_yet_to_be_trained(here, capsys):
    """A dry run warns of it, and the run itself is refused."""
    for flags in (["--reward_funcs", "later"], ["--reward_funcs", "scorer", "--value_model", "later"]):
        with pytest.warns(UserWarning, match=f"{flags[-2]} later: it cannot be loaded .* The run itself is refused"):
            main([*PPO.split(), *flags])
        told = refused(capsys, *PPO.replace(" --dry_run", "").split(), *flags)
        assert f"{flags[-2]} later: it cannot be loaded" in told


def test_what_is_no_value_model(here, capsys):
    told = refused(capsys, *PPO.split(), "--reward_funcs", "scorer", "--value_model", "two")
    assert "--value_model two: expected a reward model of one label, got 2." in told


def test_what_is_no_policy(here, capsys):
    words = PPO.replace("path model", "path scorer").split()
    told = refused(capsys, *words, "--reward_funcs", "scorer")
    assert "--model_name_or_path scorer: expected a causal language model, and it is a LlamaForSequence" in told


def test_modules_for_lora(here, capsys):
    lora = [*PPO.split(), "--reward_funcs", "scorer", "--use_peft", "--lora_target_modules"]
    main([*lora, "q_proj", "mlp.up_proj"])
    told = refused(capsys, *lora, "q_proj", "c_attn")
    assert (
        "--lora_target_modules q_proj c_attn: the model has no module 'c_attn'. Its linear ones are down_proj," in told
    )


@pytest.mark.parametrize("command", [PPO + " --reward_funcs scorer", REWARD])
def test_the_output_folder(command, here, capsys, monkeypatch):
    words = command.split()
    (here / "file").write_text("")
    assert "--output_dir file: expected a folder to write into, but 'file' is a file" in refused(
        capsys, *(word.replace("out", "file") if word == "out" else word for word in words)
    )
    write_record(here / "out", {"trainer": "RAFTTrainer", "config": {}})
    assert "--output_dir out: it holds a run of RAFTTrainer. Give this one a folder" in refused(capsys, *words)
    monkeypatch.setattr("os.access", lambda path, mode: Path(path).name != "out")
    assert "but 'out' may not be written. Give another place" in refused(capsys, *words)


def test_pairs_that_would_all_be_dropped(here, capsys):
    told = refused(capsys, *REWARD.split(), "--max_length", "8")
    assert "--max_length 8: the shortest pair of --dataset_name has 18 tokens, so none would be left." in told
    main([*REWARD.split(), "--max_length", "18"])
