"""The example `rlhf_chain.py`: end to end on the smallest model and files made here, and its parts by hand."""

import json
from pathlib import Path

import preferences
import pytest
import rlhf_chain
from rich.console import Console
from tiny import byte_tokenizer, tiny_llama
from transformers import AutoModelForCausalLM

from trl_ext import LearnedReward

QUICK = {"--rollouts": 1, "--ppo-batch": 4, "--max-completion-length": 6, "--reward-batch": 4, "--held-out": 0.4}
NEEDED = ["--model", "m", "--pairs", "p", "--prompts", "q", "--output-dir", "o"]


def json_lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def run_chain(tmp_path, pairs: list[dict], prompts: list[dict], *options) -> tuple[list[dict], str]:
    """Results and the printed table, its lines joined; the model's window is 64 bytes."""
    tokenizer = byte_tokenizer()
    for part in (tokenizer, tiny_llama(tokenizer, max_position_embeddings=64)):
        part.save_pretrained(tmp_path / "model")
    settings = QUICK | {
        "--model": tmp_path / "model",
        "--pairs": json_lines(tmp_path / "pairs.jsonl", pairs),
        "--prompts": json_lines(tmp_path / "prompts.jsonl", prompts),
        "--output-dir": tmp_path / "out",
    }
    runs = rlhf_chain.main([str(word) for word in (*(word for pair in settings.items() for word in pair), *options)])
    return runs, " ".join((tmp_path / "out" / "table.txt").read_text(encoding="utf-8").split())


def test_two_seeds_end_to_end(tmp_path):
    pairs = [{"prompt": f"{i}?", "chosen": f" ok {i}", "rejected": f" not ok {i}"} for i in range(14)]
    too_long = {"prompt": "why?", "chosen": " x" * 30, "rejected": " y"}  # 4 + 60 bytes, and the end token
    prompts = [{"prompt": f"tell {i}"} for i in range(14)] + [{"prompt": "tell 0"}, {"prompt": "a prompt" * 8}]
    runs, table = run_chain(tmp_path, [*pairs, too_long], prompts, "--seeds", 0, 1, "--ppo-learning-rate", 1e-2)

    assert "15 pairs; dropped 1 longer than 64 tokens and 0 without two different completions; 14 left" in table
    assert "16 prompts; dropped 1 longer than 58 tokens and 1 that repeat another; 14 left" in table
    assert "50.00 ± 0.00" in table and "before:" in table and "after:" in table
    written = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert [run["seed"] for run in written["runs"]] == [0, 1] and written["options"]["ppo_batch"] == 4
    for run in runs:
        assert run["accuracy"]["length alone"] == 100  # the shorter is always chosen
        assert run["accuracy"]["(pairs to learn from)"] + run["accuracy"]["(held-out pairs)"] == 14
        assert run["before"]["KL per token, nats"] == 0 != run["after"]["KL per token, nats"]
        assert run["before"]["reward by ranking alone: % of prompts won"] == 50
        assert (
            run["after"]["(held-out prompts)"] == len(run["samples"]) and len(run["samples"]) % 4 == 0
        )  # whole batches
        folder = tmp_path / "out" / f"seed-{run['seed']}"
        assert all((folder / name / "trainer_state.json").is_file() for name in ("reward-ranking", "policy"))
        AutoModelForCausalLM.from_pretrained(folder / "policy")


def test_adapters_on_two_versions_of_one_text(tmp_path):
    pairs = [{"good": f"N. {i}. So good.", "bad": f"N. {i}. So bad!", "original": "bad"} for i in range(14)]
    pairs = [{side: text.replace("N. ", "N") for side, text in pair.items()} for pair in pairs]
    stories = [{"text": f"Day {i}. The end."} for i in range(14)]
    fields = ["--pair-fields", "good", "bad", "--prompt-field", "text", "--first-sentence"]
    runs, _ = run_chain(tmp_path, pairs, stories, *fields, "--lora")
    assert {sample["prompt"] for sample in runs[0]["samples"]} <= {f"Day {i}." for i in range(14)}
    for name in ("reward-ranking", "reward-imitation", "policy"):
        assert (tmp_path / "out" / "seed-0" / name / "adapter_model.safetensors").is_file()
    LearnedReward(str(tmp_path / "out" / "seed-0" / "reward-imitation"))(prompts=["N1."], completions=[" So good."])


def test_versions_of_one_text_become_a_pair(tmp_path):
    rows = [
        {"good": "I saw it. Fine!", "bad": "I saw this. Bad!\n", "original": "bad"},
        {"good": "Mine. Fine!", "bad": "Ours. Bad!"},
        {"good": "One sentence. Or two.", "bad": "One sentence."},
        {"good": "Mine. The same.", "bad": "Ours. The same."},
    ]
    path = json_lines(tmp_path / "pairs.jsonl", rows)
    pairs = preferences.load_pairs(path, ["good", "bad"], byte_tokenizer(), 64, Console(quiet=True))
    assert pairs == [
        {"prompt": "I saw this.", "chosen": " Fine!", "rejected": " Bad!"},
        {"prompt": "Mine.", "chosen": " Fine!", "rejected": " Bad!"},
    ]


def test_completions_that_repeat_their_prompt_in_each_row(tmp_path):
    path = json_lines(tmp_path / "pairs.jsonl", [{"prompt": "why?", "chosen": "why? no.", "rejected": "why? y"}])
    pairs = preferences.load_pairs(path, list(preferences.PAIR), byte_tokenizer(), 64, Console(quiet=True))
    assert pairs == [{"prompt": "why?", "chosen": " no.", "rejected": " y"}]


@pytest.mark.parametrize("length, left", [(9, 1), (8, 0)])
def test_the_end_token_counts(tmp_path, length, left):
    path = json_lines(tmp_path / "pairs.jsonl", [{"prompt": "why?", "chosen": " no.", "rejected": " y"}])  # 4 + 4 + 1
    fields = ["prompt", "chosen", "rejected"]
    pairs = preferences.load_pairs(path, fields, byte_tokenizer(), length, Console(quiet=True))
    assert len(pairs) == left


def test_a_prompt_is_on_one_side_whatever_the_order():
    prompts = [f"prompt {i % 100}" for i in range(300)]
    train, held_out = preferences.split(prompts, str, seed=0, share=0.3, name="prompts")
    assert set(train).isdisjoint(held_out) and 15 < len(set(held_out)) < 45
    assert set(held_out) == set(preferences.split(prompts[::-1], str, seed=0, share=0.3, name="prompts")[1])
    assert set(held_out) != set(preferences.split(prompts, str, seed=1, share=0.3, name="prompts")[1])


def test_bad_files_are_named(tmp_path):
    path = json_lines(tmp_path / "prompts.jsonl", [{"text": "a"}, {"prompt": None}])
    with pytest.raises(ValueError, match=r"prompts.jsonl, line 2: expected text in the field 'text'.*--prompt-field"):
        list(preferences.read_rows(path, ["text"]))
    path = json_lines(tmp_path / "pairs.jsonl", [{"chosen": [{"role": "user", "content": "a"}]}])
    with pytest.raises(ValueError, match=r"line 1: expected text in the field 'chosen', got \[.* learns from text"):
        list(preferences.read_rows(path, ["chosen"]))
    with pytest.raises(ValueError, match=r"--held-out 0 of 1 pairs leaves 1 to train on and 0"):
        preferences.split(["a"], str, seed=0, share=0, name="pairs")
    with pytest.raises(SystemExit):
        rlhf_chain.parse([*NEEDED, "--pair-fields", "one"])


@pytest.mark.parametrize("flag", ["--reward-batch", "--rollouts", "--ppo-batch", "--max-completion-length"])
def test_sizes_are_at_least_1(capsys, flag):
    assert rlhf_chain.parse([*NEEDED, flag, "1"])
    with pytest.raises(SystemExit):
        rlhf_chain.parse([*NEEDED, flag, "0"])
    assert f"{flag} takes a whole number of at least 1, got 0" in capsys.readouterr().err


def test_too_few_prompts_for_a_batch_are_told_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(rlhf_chain, "ImitationRewardTrainer", None)
    pairs = [{"prompt": f"{i}?", "chosen": " ok", "rejected": " no"} for i in range(40)]
    prompts = [{"prompt": f"tell {i}"} for i in range(40)]
    found = (
        r"--ppo-batch 41 with --held-out 0.4: of 40 prompts, 2\d are left .* seed 0, .* takes 41. Lower --ppo-batch"
    )
    with pytest.raises(ValueError, match=found):
        run_chain(tmp_path, pairs, prompts, "--ppo-batch", 41)
    assert not (tmp_path / "out").exists()
    options = rlhf_chain.parse([*NEEDED, "--held-out", "0.5", "--ppo-batch", "1"])
    rows, texts = [{"prompt": str(i)} for i in range(40)], [str(i) for i in range(40)]
    options.ppo_batch = len(rlhf_chain.halves(options, rows, texts, 0)["prompts"][0])
    rlhf_chain.halves(options, rows, texts, 0)  # one batch is enough
    options.ppo_batch += 1
    with pytest.raises(ValueError, match=r"with --held-out 0.5"):
        rlhf_chain.halves(options, rows, texts, 0)


def test_measures_by_hand():
    assert preferences.share_won([3, 1, 2, 0], [1, 1, 3, 1]) == 37.5  # won, equal, lost, lost: 1.5 of 4
    shorter, longer, equal = ({"chosen": a, "rejected": b} for a, b in (("a", "bb"), ("aa", "b"), ("a", "b")))
    assert preferences.length_accuracy([shorter, shorter, longer], [shorter, longer, equal, shorter]) == 62.5
    assert preferences.length_accuracy([longer], [shorter, longer, equal, shorter]) == 37.5
    assert rlhf_chain.distinct_2(["a b a b", "a b"]) == 0.5  # ab ba ab, ab: 2 of 4
    assert rlhf_chain.distinct_2(["one", ""]) == 0
    assert rlhf_chain.distinct_2(["a.", "a."]) == 0.5  # as in every other table: a stop is a word

    def reward(prompts, completions):
        return [float(len(prompt + completion)) for prompt, completion in zip(prompts, completions, strict=True)]

    pairs = [{"prompt": "p"} | pair for pair in (longer, longer, shorter, equal)]
    assert preferences.pair_accuracy(reward, pairs) == 62.5


def test_another_chains_folder_is_refused(tmp_path):
    (tmp_path / "out" / "seed-0" / "policy").mkdir(parents=True)
    rows = [{"prompt": f"{i}?", "chosen": " ok", "rejected": " no"} for i in range(5)]
    with pytest.raises(ValueError, match=r"rlhf_chain.py --output-dir .*out' holds 'seed-0', which this run did not"):
        run_chain(tmp_path, rows, [{"prompt": f"tell {i}"} for i in range(14)])
