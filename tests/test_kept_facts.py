"""All rows of a data set are read once: the next trainer, process or run takes what was found, and errors stay as they are."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import datasets
import pytest
from datasets import Dataset, load_dataset
from filelock import FileLock
from ppo_case import even_letters, ppo_trainer
from self_training_case import trainer
from tiny import ON_CPU, byte_tokenizer, tiny_config, tiny_reward_model

from trl_ext import ImitationRewardConfig, ImitationRewardTrainer, PPOTrainer
from trl_ext.reward_modeling import preference_data
from trl_ext.sequences import prompt_facts, prompt_rows
from trl_ext.sequences.prompt_rows import read_dataset
from trl_ext.sequences.token_ids import many_prompt_ids, prompt_ids
from trl_ext.sequences.windows import check_all_windows, check_windows
from trl_ext.trainer_kit import fingerprints, kept_facts
from trl_ext.trainer_kit.fingerprints import data_fingerprint
from trl_ext.trainer_kit.kept_facts import kept

COUNT = 300
TEXTS = [f"say {i}" for i in range(COUNT)]
CHATS = [[{"role": "user", "content": text}] for text in TEXTS]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """A cache of its own, in which what is found of 100 rows is kept already."""
    monkeypatch.setattr(kept_facts, "KEPT_FROM", 100)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def on_disk(folder: Path, rows: dict[str, list]) -> Dataset:
    """As a script loads it, in each run anew."""
    path = folder.parent / "rows.jsonl"
    text = "".join(json.dumps(dict(zip(rows, row, strict=True))) + "\n" for row in zip(*rows.values(), strict=True))
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
    return load_dataset("json", data_files=str(path), split="train", cache_dir=str(folder))


def in_memory(folder: Path, rows: dict[str, list]) -> Dataset:
    return Dataset.from_dict(rows)


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """What was read of all rows: one entry for each pass that was made, and for each prompt that was tokenised."""
    seen, batches, ids = [], kept_facts.batches, many_prompt_ids

    def counting(dataset, columns):
        seen.append("rows")
        return batches(dataset, columns)

    def tokenising(prompts, *args):
        seen.extend("tokens" for _ in prompts)
        return ids(prompts, *args)

    for module in (prompt_rows, prompt_facts):
        monkeypatch.setattr(module, "batches", counting)
    monkeypatch.setattr(prompt_facts, "many_prompt_ids", tokenising)
    whole = fingerprints.rows_fingerprint
    monkeypatch.setattr(fingerprints, "rows_fingerprint", lambda *given: seen.append("fingerprint") or whole(*given))
    return seen


@pytest.mark.parametrize("make", [on_disk, in_memory])
@pytest.mark.parametrize("prompts", [TEXTS, CHATS], ids=["text", "chat"])
def test_a_second_trainer_reads_nothing_again(tmp_path, folder, read, make, prompts):
    """Of text that surely fits the window no token is made; all else is tokenised once."""
    first = trainer(tmp_path / "a", train_dataset=make(folder, {"prompt": prompts}))
    first._recorded(), first._memory_plan()
    assert read.count("rows") == read.count("fingerprint") == 1
    assert read.count("tokens") == (COUNT if prompts is CHATS else 0)
    ppo = ppo_trainer(tmp_path / "c")
    read.clear()
    again = trainer(tmp_path / "b", train_dataset=make(folder, {"prompt": prompts}), max_completion_length=7)
    assert again._recorded() == first._recorded() and again._memory_plan() is not None
    PPOTrainer(ppo.model, even_letters, ppo.args, make(folder, {"prompt": prompts}), processing_class=byte_tokenizer())
    assert read == []


@pytest.mark.parametrize("make", [on_disk, in_memory])
def test_a_second_reward_trainer_looks_at_no_pair_again(tmp_path, folder, monkeypatch, make):
    seen, read, tokenizer = [], preference_data._read, byte_tokenizer()
    monkeypatch.setattr(
        preference_data, "_read", lambda row, *given, **how: seen.append(row) or read(row, *given, **how)
    )
    counts = []
    for prompts in (TEXTS, TEXTS, [text + "?" for text in TEXTS]):
        pairs = {"prompt": prompts, "chosen": [" yes"] * COUNT, "rejected": [" no"] * COUNT}
        args = ImitationRewardConfig(output_dir=str(tmp_path / "run"), imitation_coef=0.0, max_length=64, **ON_CPU)
        ImitationRewardTrainer(
            tiny_reward_model(tokenizer), args, train_dataset=make(folder, pairs), processing_class=tokenizer
        )
        counts.append(len(seen))
    assert counts == [COUNT, COUNT, 2 * COUNT]


def test_other_rows_are_read(tmp_path, folder, read):
    for prompts in (TEXTS, [text + "?" for text in TEXTS]):
        for make in (on_disk, in_memory):
            read_dataset(make(folder, {"prompt": prompts}), trainer="T")
    assert read.count("rows") == 4
    read_dataset(in_memory(folder, {"prompt": TEXTS}).select(range(1, COUNT)), trainer="T")
    assert read.count("rows") == 5


def test_another_template_is_another_pass(folder, read):
    tokenizer = byte_tokenizer()
    dataset, config = in_memory(folder, {"prompt": CHATS}), tiny_config(tokenizer)
    for template in (tokenizer.chat_template, tokenizer.chat_template, "{{ messages[0].content }}" + "x" * 20):
        tokenizer.chat_template = template
        check_all_windows(dataset, tokenizer, config, max_completion_length=8, call="Here")
    assert read.count("tokens") == 2 * COUNT and read.count("rows") == 1


BAD = {
    "empty": ([*TEXTS[:250], "", *TEXTS[251:]], "the prompt of row 250 is ''"),
    "mixed": ([*CHATS[:250], [], *CHATS[251:]], "the prompt of row 250 is \\[\\]"),
    "long": ([*TEXTS[:250], "a" * 300, *TEXTS[251:]], "the prompt of row 250 has 300 tokens"),
    "long chat": (
        [*CHATS[:250], [{"role": "user", "content": "a" * 300}], *CHATS[251:]],
        "the prompt of row 250 has 305",
    ),
    "unwritten": (
        [*CHATS[:250], [{"role": "tool", "content": "a"}], *CHATS[251:]],
        "prompt of row 250 does not become",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_row_is_named_each_time(tmp_path, folder, kind):
    """Nothing is kept of what failed, and of a data set that is read again the row is named again."""
    prompts, message = BAD[kind]
    tokenizer = byte_tokenizer()
    if kind == "unwritten":
        tokenizer.chat_template = "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no') }}{% endif %}{{ m.content }}{% endfor %}"
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            trainer(tmp_path / "run", train_dataset=on_disk(folder, {"prompt": prompts}), processing_class=tokenizer)


@pytest.mark.parametrize("room", [200, 230, 245, 250])
@pytest.mark.parametrize("prompts", [TEXTS, CHATS, [*CHATS, [{"role": "user", "content": "a" * 20}]]])
def test_it_refuses_what_the_check_of_each_prompt_refuses(folder, prompts, room):
    """The window has 256 positions; what is kept was found for other rooms, too."""
    tokenizer = byte_tokenizer()
    dataset, told = in_memory(folder, {"prompt": prompts}), []
    options = {"max_completion_length": room, "call": "Here"}
    for check, given in ((check_windows, dataset["prompt"][:]), (check_all_windows, dataset)):
        try:
            check(given, tokenizer, tiny_config(tokenizer), **options)
            told.append(None)
        except ValueError as error:
            told.append(str(error))
    assert told[0] == told[1]


def test_many_at_once_are_each_by_itself():
    tokenizer = byte_tokenizer(bos=True)
    for prompts in (TEXTS[:9], [*CHATS[:3], [{"role": "user", "content": [{"type": "text", "text": "parts"}]}]]):
        assert many_prompt_ids(prompts, tokenizer) == [prompt_ids(prompt, tokenizer) for prompt in prompts]


def test_a_fingerprint_is_the_rows_own(folder):
    rows = {"prompt": TEXTS, "wanted": list(range(COUNT))}
    found = [data_fingerprint(make(folder, rows)) for make in (on_disk, in_memory) for _ in range(2)]
    assert len(set(found)) == 1 and found[0] == data_fingerprint(Dataset.from_dict(rows).select(range(COUNT)))
    assert data_fingerprint(Dataset.from_dict(rows | {"wanted": [0, *range(1, COUNT - 1), 7]})) != found[0]


def test_few_rows_and_a_cache_that_is_off_leave_no_file(folder, monkeypatch):
    few, many = Dataset.from_dict({"prompt": TEXTS[:99]}), Dataset.from_dict({"prompt": TEXTS})
    assert kept(few, "n", lambda: 1) == 1 and not folder.exists()
    monkeypatch.setattr(datasets, "is_caching_enabled", lambda: False)
    assert [kept(many, "n", lambda n=n: n) for n in (1, 2)] == [1, 2] and not folder.exists()


def test_a_folder_that_cannot_be_written_and_a_damaged_file(folder):
    rows = Dataset.from_dict({"prompt": TEXTS})
    folder.write_text("a file, and no folder")
    assert [kept(rows, "n", lambda n=n: n) for n in (1, 2)] == [1, 2]
    folder.unlink()
    assert [kept(rows, "n", lambda n=n: [n]) for n in (1, 2)] == [[1], [1]]
    for path in folder.glob("*.json"):
        path.write_text("{")
    assert kept(rows, "n", lambda: 3) == 3 == kept(rows, "n", lambda: 4)


def test_a_function_of_ones_own_that_makes_others_of_the_rows(folder):
    rows = Dataset.from_dict({"prompt": TEXTS})
    loud, soft = (rows.with_transform(partial(ending_in, mark)) for mark in "!?")
    found = [kept(each, "first", lambda each=each: each[0]["prompt"]) for each in (rows, loud, soft) * 2]
    assert found == ["say 0", "say 0!", "say 0?"] * 2


def test_a_process_that_reads_for_too_long_is_not_waited_for(folder, monkeypatch):
    monkeypatch.setattr(kept_facts, "PATIENCE", 0.1)
    rows = Dataset.from_dict({"prompt": TEXTS})
    with FileLock(f"{kept_facts._place(rows, 'n', None, ())}.lock"):
        assert kept(rows, "n", lambda: 1) == 1


def ending_in(mark: str, batch: dict[str, list[str]]) -> dict[str, list[str]]:
    return {"prompt": [text + mark for text in batch["prompt"]]}


SCRIPT = """
import sys, time
from pathlib import Path
import datasets
from datasets import Dataset
from trl_ext.trainer_kit import fingerprints, kept_facts
datasets.config.HF_DATASETS_CACHE, kept_facts.KEPT_FROM = Path(sys.argv[1]), 1

def find():
    with open(sys.argv[2], "a") as file:
        file.write("read\\n")
    time.sleep(1)
    if sys.argv[3] == "fails":
        raise ValueError("no prompt")
    return 7

print(kept_facts.kept(Dataset.from_dict({"prompt": ["a"]}), "n", find))
"""


@pytest.mark.parametrize("outcome", ["finds", "fails"])
def test_of_two_processes_one_reads_and_neither_hangs(tmp_path, folder, outcome):
    """Where the first fails the second reads for itself, and fails as it would alone."""
    given = [sys.executable, "-c", SCRIPT, str(folder), str(tmp_path / "reads"), outcome]
    both = [subprocess.Popen(given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    told = [process.communicate(timeout=120) for process in both]
    reads = len((tmp_path / "reads").read_text().splitlines())
    if outcome == "finds":
        assert [out for out, _ in told] == ["7\n", "7\n"] and reads == 1
    else:
        assert all("ValueError: no prompt" in error for _, error in told) and reads == 2
