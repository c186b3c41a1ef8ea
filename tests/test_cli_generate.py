"""`trl-ext generate`, in process, with models of a few numbers."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import fields

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_case import write_rows
from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from self_training_case import trainer
from tiny import byte_tokenizer, tiny_llama, tiny_reward_model

from trl_ext.cli import _parser, main
from trl_ext.cli.generate_files import RECORD_KEY
from trl_ext.cli.generate_progress import PartProgress
from trl_ext.cli.prompt_files import read_prompts
from trl_ext.generation.endpoint_generator import EndpointGenerator
from trl_ext.generation.file_generator import FileGenerator
from trl_ext.generation.protocol import Part, Policy, Sampling
from trl_ext.generation.sample_files import SampleFiles
from trl_ext.generation.transformers_generator import TransformersGenerator
from trl_ext.trainer_kit.run_record import write_record

ROWS = [{"prompt": prompt, "wanted": i} for i, prompt in enumerate(["say it", "why?", "go", "who is it", "yes"])]
REWARDS = """
def nearness(completions, wanted, **columns):
    return [-abs(len(text) - want) for text, want in zip(completions, wanted, strict=True)]

class Watched:
    __name__ = "watched"
    def __call__(self, *, completions, **columns):
        return [None] * len(completions)

def broken(completions, **columns):
    return [int(text) for text in completions]

number = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where a command is run: with a model, prompts and rewards."""
    tiny_llama(byte_tokenizer()).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    write_rows(tmp_path / "prompts.jsonl", ROWS)
    (tmp_path / "rewards.py").write_text(REWARDS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*options, output="samples.parquet", model="model", generator="transformers"):
    """The command with two samples per prompt and two prompts per part."""
    shared = {"--prompts": "prompts.jsonl", "--num-generations": "2", "--max-completion-length": "6"}
    shared |= {"--prompts-per-part": "2", "--device": "cpu", "--generator": generator, "--output": output}
    shared |= {"--model": model} if model else {}
    main(["generate", *(word for flag in shared.items() if flag[0] not in options for word in flag), *options])


def refused(capsys, message, *options, **others):
    with pytest.raises(SystemExit) as raised:
        run(*options, **others)
    told = capsys.readouterr().err
    assert raised.value.code == 2 and message in told and "Traceback" not in told, told


@pytest.fixture
def dies(monkeypatch):
    """Let the generator die after its first part, as often as asked."""
    real = TransformersGenerator.generate

    def generate(self, parts, sampling, policy):
        for count, result in enumerate(real(self, parts, sampling, policy)):
            if count:
                raise RuntimeError("killed")
            yield result

    return lambda: monkeypatch.setattr(TransformersGenerator, "generate", generate)


NEARNESS = ("--reward", "rewards.py:nearness")


def test_samples_as_the_generator_gives_them(folder, capsys):
    run("--seed", "3", "--temperature", "0.7")
    assert sorted(os.listdir(folder)) == ["model", "prompts.jsonl", "rewards.py", "samples.parquet"]
    table = pq.read_table("samples.parquet")
    sampling = Sampling(num_generations=2, max_completion_length=6, temperature=0.7, seed=3)
    policy = Policy(tiny_llama(byte_tokenizer()), byte_tokenizer())
    part = Part(0, tuple(range(5)), tuple(row["prompt"] for row in ROWS))
    ((_, samples),) = TransformersGenerator().generate([part], sampling, policy)
    assert table.to_pylist() == samples  # and no columns of scores or of a selection
    ended = sum(sample["ended"] for sample in samples) / 10
    length = sum(len(sample["completion_ids"]) for sample in samples) / 10
    printed = capsys.readouterr().out
    assert printed == f"samples.parquet: 10 samples, {ended:.0%} ended, mean length {length:.1f} tokens\n"


def test_that_nothing_ended_is_said(folder, capsys):
    run("--seed", "3", "--max-completion-length", "1")
    told = capsys.readouterr().err
    assert "warning: no completion ended; all were cut at --max-completion-length. Raise it, or see" in told
    run(output="other.parquet")
    assert "no completion ended" not in capsys.readouterr().err


def test_scores(folder, capsys):
    tiny_reward_model(byte_tokenizer()).save_pretrained("judge")
    byte_tokenizer().save_pretrained("judge")
    sys.path_importer_cache.clear()
    options = (*NEARNESS, "--reward", "rewards:Watched", "--reward", "judge", "--reward-weights", "2", "1", "0")
    run(*options)
    table = pq.read_table("samples.parquet")
    samples = table.to_pylist()
    assert table.column_names[-5:] == ["duplicate", "reward/nearness", "reward/watched", "reward/judge", "score"]
    for sample in samples:  # prompt i wants i characters
        assert sample["reward/nearness"] == -abs(len(sample["completion"]) - sample["row"])
        assert sample["reward/watched"] is None and sample["reward/judge"] != 0
        assert sample["score"] == 2 * sample["reward/nearness"]
    mean = sum(sample["score"] for sample in samples) / 10
    assert f"mean score {mean:.4g}\n" in capsys.readouterr().out


def test_killed_and_resumed_is_as_if_never_killed(folder, dies, monkeypatch):
    run(*NEARNESS, output="whole/samples.parquet")
    with monkeypatch.context():
        dies()
        for left in (1, 2):
            with pytest.raises(RuntimeError, match="killed"):
                run(*NEARNESS)
            parts = [f"sampled-{part:05d}.parquet" for part in range(left)]
            assert sorted(os.listdir("samples")) == [*parts, "trl_ext_run.json"]
        run(*NEARNESS)  # the last part is the first that it samples
    whole, resumed = (path.read_bytes() for path in (folder / "whole/samples.parquet", folder / "samples.parquet"))
    assert whole == resumed
    assert not (folder / "samples").exists()


def test_what_is_sampled_needs_no_model_to_be_scored(folder, monkeypatch, capsys):
    refused(capsys, "invalid literal for int()", "--reward", "rewards.py:broken")  # the user mends it
    (folder / "rewards.py").write_text("def broken(completions, **columns):\n    return [1.0] * len(completions)")
    monkeypatch.setattr("trl_ext.cli.generate_run.make_policy", None)
    run("--reward", "rewards.py:broken")
    assert set(pq.read_table("samples.parquet")["score"].to_pylist()) == {1.0}


def test_an_error_in_a_reward_names_its_place(folder, capsys):
    refused(capsys, "rewards.py, line 11)", "--reward", "rewards.py:broken")


def test_what_a_default_stands_for_is_the_same_command(folder, capsys):
    run(*NEARNESS)
    capsys.readouterr()
    run(*NEARNESS, "--reward-weights", "1", "--min-p", "0")
    assert capsys.readouterr().out.startswith("Complete already.")


def test_a_complete_output_is_left_alone(folder, monkeypatch, capsys):
    run()
    before = (folder / "samples.parquet").stat().st_mtime_ns
    write_record(folder / "samples", json.loads(pq.read_schema("samples.parquet").metadata[RECORD_KEY]))
    (folder / "samples" / "scored-00001.parquet").touch()  # killed while it removed the parts
    monkeypatch.setattr(TransformersGenerator, "generate", None)
    capsys.readouterr()
    run()
    assert capsys.readouterr().out.startswith("Complete already. samples.parquet: 10 samples")
    assert (folder / "samples.parquet").stat().st_mtime_ns == before and not (folder / "samples").exists()


@pytest.mark.parametrize("names", [["sampled-holiday.mp4", "scored-goals.csv"], ["scored-00000.parquet"], []])
def test_a_folder_without_our_record_is_left_alone(folder, capsys, names):
    """Whether it has nothing in it, names like ours, or those of our parts."""
    (folder / "samples").mkdir()
    for name in names:
        (folder / "samples" / name).write_text("mine")
    refused(capsys, "--output samples.parquet: its parts would go into 'samples', which holds something else")
    run(output="whole.parquet")
    (folder / "whole.parquet").rename("samples.parquet")
    run()  # complete already
    assert sorted(os.listdir("samples")) == sorted(names)


def test_a_folder_with_another_record_is_left_alone(folder, capsys):
    write_record(folder / "samples", {"config": {}, "generator": {}})  # of a run of RAFT that has sampled nothing yet
    refused(capsys, "it has no record of this command")
    run(output="whole.parquet")
    (folder / "whole.parquet").rename("samples.parquet")
    run()
    assert os.listdir("samples") == ["trl_ext_run.json"]


def test_what_else_comes_into_the_parts_folder_stays(folder, monkeypatch):
    real = SampleFiles.finish

    def finish(files, *args):
        (files.parts / "notes.txt").write_text("mine")
        real(files, *args)

    monkeypatch.setattr(SampleFiles, "finish", finish)
    run()
    assert os.listdir("samples") == ["notes.txt"] and pq.read_table("samples.parquet").num_rows == 10


def test_killed_while_it_joined_its_parts(folder, monkeypatch):
    """On a drive that cannot rename: the half of it is no file of others."""

    def killed(files, *args):
        files.finished.write_bytes(b"PAR1")
        for kind in ("copying", "partial"):
            (folder / f"samples.parquet.7.{kind}").touch()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(SampleFiles, "finish", killed)
        with pytest.raises(SystemExit, match="130"):
            run()
    (folder / "other.parquet.7.partial").touch()
    run()
    assert pq.read_table("samples.parquet").num_rows == 10
    assert sorted(path.name for path in folder.glob("*.parquet*")) == ["other.parquet.7.partial", "samples.parquet"]


def test_a_record_that_was_half_copied(folder):
    (folder / "samples").mkdir()
    (folder / "samples" / "trl_ext_run.json").write_text("{")
    (folder / "samples" / "trl_ext_run.json.7.copying").touch()
    run()
    assert not (folder / "samples").exists()


def test_killed_while_it_wrote_its_record(folder):
    (folder / "samples").mkdir()
    (folder / "samples" / "trl_ext_run.json.7.partial").write_text("{")
    (folder / "samples.parquet.part.7.partial").write_text("a user's")
    run()
    assert not (folder / "samples").exists() and (folder / "samples.parquet.part.7.partial").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--temperature", "0.5"), "temperature: 1.0 then, 0.5 now"),
        (("--prompts-per-part", "3"), "prompts_per_part: 2 then, 3 now"),
        (("--dtype", "bfloat16"), "dtype: 'auto' then, 'bfloat16' now"),
        (NEARNESS, "reward: [] then, ['rewards.py:nearness'] now"),
    ],
)
def test_another_command_into_the_same_output_is_refused(folder, dies, capsys, monkeypatch, options, message):
    with monkeypatch.context():
        dies()
        with pytest.raises(RuntimeError):
            run()
    refused(capsys, message, *options)
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    run("--batch-size", "1")  # changes no sample
    refused(capsys, message, *options)  # also when it is complete


def test_other_prompts_into_the_same_output_are_refused(folder, capsys):
    run()
    (folder / "prompts.jsonl").write_text('{"prompt": "else"}')
    refused(capsys, "prompts: '")


def test_a_command_that_could_not_begin_binds_nobody(folder, capsys):
    refused(capsys, "passes the model's window of 256", "--max-completion-length", "256")
    run()


def test_files_of_others_are_left_alone(folder, capsys):
    refused(capsys, "'model', which holds something else", output="model.parquet")
    pq.write_table(pa.table({"a": [1]}), folder / "mine.parquet")
    refused(capsys, "a file that this command did not write", output="mine.parquet")
    (folder / "text.parquet").write_text("not parquet")
    refused(capsys, "--output text.parquet: there is a file that is no parquet file", output="text.parquet")
    (folder / "grow-000").mkdir()
    (folder / "grow-000" / "scored-00000.parquet").touch()  # of a run of RAFT
    refused(capsys, "which holds something else", output="grow-000.parquet")
    assert (folder / "model" / "config.json").exists() and (folder / "grow-000" / "scored-00000.parquet").exists()


def test_others_read_the_output(folder):
    run(*NEARNESS)
    rows = load_dataset("parquet", data_files="samples.parquet", split="train", cache_dir=str(folder / "cache"))
    assert rows.num_rows == 10
    part = Part(0, (0, 1), (ROWS[1]["prompt"], ROWS[4]["prompt"]))
    ((_, samples),) = FileGenerator("samples.parquet").generate(
        [part], Sampling(num_generations=2), Policy(None, byte_tokenizer())
    )
    assert [sample["completion_ids"] for sample in samples] == rows["completion_ids"][2:4] + rows["completion_ids"][8:]
    with pytest.raises(ValueError, match="another tokenizer"):
        other = byte_tokenizer()
        other.add_tokens(["more"])
        list(FileGenerator("samples.parquet").generate([part], Sampling(), Policy(None, other)))


def test_alpaca_eval_reads_the_first_sample_of_each_prompt(folder, capsys):
    run("--alpaca-eval", "outputs.json")
    rows = json.loads((folder / "outputs.json").read_text())
    samples = pq.read_table("samples.parquet").to_pylist()
    assert [row["instruction"] for row in rows] == [row["prompt"] for row in ROWS]
    assert [row["output"] for row in rows] == [row["completion"].strip() for row in samples[::2]]
    assert {row["generator"] for row in rows} == {"model"} and set(rows[0]) == {"instruction", "output", "generator"}
    run("--alpaca-eval", "outputs.json")  # given again, and for samples that are there already
    run("--alpaca-eval", "later.json")
    assert (folder / "later.json").read_text() == (folder / "outputs.json").read_text()
    refused(
        capsys,
        "--alpaca-eval outputs.json: there is a file already",
        "--alpaca-eval",
        "outputs.json",
        output="b.parquet",
    )
    (folder / "outputs.json").write_text("mine")
    refused(capsys, "it holds something else than these samples", "--alpaca-eval", "outputs.json")
    assert (folder / "outputs.json").read_text() == "mine" and not (folder / "b.parquet").exists()
    refused(capsys, "expected a name that ends in .json", "--alpaca-eval", "outputs.txt", output="b.parquet")


def test_alpaca_eval_s_own_columns_are_kept(folder):
    """A template around the question is not part of what AlpacaEval's judge is shown."""
    asked = [{"prompt": f"Q: {text}\nA:", "instruction": text, "dataset": "helpful_base"} for text in ("why?", "who?")]
    write_rows(folder / "asked.jsonl", asked)
    run("--prompts", "asked.jsonl", "--alpaca-eval", "outputs.json")
    rows = json.loads((folder / "outputs.json").read_text())
    assert [(row["dataset"], row["instruction"]) for row in rows] == [
        ("helpful_base", "why?"),
        ("helpful_base", "who?"),
    ]


def test_what_exists_is_scored(folder):
    run()
    run(*NEARNESS, "--file", "samples.parquet", generator="file", output="scored.parquet")
    before, after = pq.read_table("samples.parquet"), pq.read_table("scored.parquet")
    assert after.select(before.column_names).to_pylist() == before.to_pylist()
    assert "score" in after.column_names


def test_prompts_that_repeat_keep_their_own_samples(folder):
    """Through the command, and in parts of another size and order."""
    prompts = ["say it", "go", "say it", "say it"]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    run()
    run("--file", "samples.parquet", generator="file", output="again.parquet")
    before = pq.read_table("samples.parquet").to_pylist()
    assert pq.read_table("again.parquet").to_pylist() == before
    assert len({tuple(sample["completion_ids"]) for sample in before}) == 8
    part = Part(0, (3, 0), (prompts[3], prompts[0]))
    ((_, samples),) = FileGenerator("again.parquet").generate([part], Sampling(), Policy(None, byte_tokenizer()))
    assert [sample["completion_ids"] for sample in samples] == [before[i]["completion_ids"] for i in (6, 7, 0, 1)]


def test_raft_starts_from_the_output(folder):
    run(*NEARNESS)
    raft = trainer(
        folder / "raft",
        model=tiny_llama(byte_tokenizer()),
        prompts=[row["prompt"] for row in ROWS],
        generator=FileGenerator("samples.parquet"),
        num_stages=1,
        num_generations=2,
    )
    raft.train()
    grown, before = pq.read_table("raft/grow-000.parquet"), pq.read_table("samples.parquet")
    names = ["prompt", "completion", "prompt_ids", "completion_ids", "ended", "generator", "seed"]
    by_place = [("row", "ascending"), ("sample", "ascending")]
    assert grown.sort_by(by_place).select(names).to_pylist() == before.select(names).to_pylist()


def test_samples_without_ids_are_of_no_tokenizer(folder, monkeypatch):
    monkeypatch.setattr(EndpointGenerator, "_ask", lambda self, prompt, n, *others: [(" yes", True)] * n)
    where = ("--base-url", "http://127.0.0.1:9/v1")
    run(*NEARNESS, *where, generator="endpoint", model="some-name")
    samples = pq.read_table("samples.parquet").to_pylist()
    assert {sample["generator"] for sample in samples} == {"endpoint:some-name"}
    assert [sample["score"] for sample in samples[::2]] == [-4.0, -3.0, -2.0, -1.0, 0.0]
    part = Part(0, (0,), (ROWS[0]["prompt"],))
    for tokenizer in (byte_tokenizer(), byte_tokenizer(pad_is_eos=True)):
        ((_, again),) = FileGenerator("samples.parquet").generate([part], Sampling(), Policy(None, tokenizer))
        assert [sample["completion"] for sample in again] == [" yes", " yes"]


@pytest.mark.parametrize("given", ["both", "adapter", "as model"])
def test_adapters(folder, given):
    policy = get_peft_model(
        tiny_llama(byte_tokenizer()), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    )
    policy.peft_config["default"].base_model_name_or_path = "model"
    policy.save_pretrained("adapter")
    options = {"both": ("--adapter", "adapter"), "adapter": ("--adapter", "adapter"), "as model": ()}[given]
    run(*options, model={"both": "model", "adapter": None, "as model": "adapter"}[given])
    part = Part(0, tuple(range(5)), tuple(row["prompt"] for row in ROWS))
    sampling = Sampling(num_generations=2, max_completion_length=6)
    ((_, samples),) = TransformersGenerator().generate([part], sampling, Policy(policy.eval(), byte_tokenizer()))
    assert pq.read_table("samples.parquet").to_pylist() == samples


def test_messages(folder):
    rows = [{"question": [{"role": "user", "content": text}]} for text in ("why?", "go")]
    (folder / "prompts.json").write_text(json.dumps(rows))
    run("--prompts", "prompts.json", "--prompt-column", "question")
    samples = pq.read_table("samples.parquet").to_pylist()
    assert samples[0]["prompt"] == rows[0]["question"]
    assert samples[0]["completion"][0]["role"] == "assistant"


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl", ".json"])
def test_prompts_stay_as_they_are(tmp_path, suffix):
    path = tmp_path / f"prompts{suffix}"
    if suffix == ".csv":
        path.write_text('question,wanted\n12,1\nNA,2\n"two\nlines",3\n')
    elif suffix == ".parquet":
        pq.write_table(pa.table({"question": ["12", "NA", "two\nlines"], "wanted": [1, 2, 3]}), path)
    else:
        rows = [{"question": text, "wanted": i} for i, text in enumerate(["12", "NA", "two\nlines"], start=1)]
        path.write_text("\n".join(map(json.dumps, rows)) if suffix == ".jsonl" else json.dumps(rows))
    assert read_prompts(path, "question").to_dict() == {"prompt": ["12", "NA", "two\nlines"], "wanted": [1, 2, 3]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.jsonl", None, "--prompts none.jsonl: there is no such file"),
        ("empty.jsonl", "", "--prompts empty.jsonl: it has no rows"),
        ("empty.csv", "", "--prompts empty.csv: it has no rows"),
        ("header.csv", "prompt\n", "--prompts header.csv: it has no rows"),
        ("other.jsonl", '{"text": "a"}', "has the columns ['text'], and no column 'prompt'. Name the one"),
        ("hole.jsonl", '{"prompt": "a"}\n{"prompt": ""}', "the prompt of row 1 is ''"),
        ("damaged.jsonl", '{"prompt": ', "--prompts damaged.jsonl: it cannot be read (Expecting value"),
        ("words.jsonl", '"a"', "expected each row to be an object"),
        ("large.jsonl", '{"prompt": "a", "n": 18446744073709551616}', "--prompts large.jsonl: it cannot be read"),
        ("object.json", '{"prompt": "a"}', "expected a list of objects"),
        ("damaged.parquet", "PAR", "--prompts damaged.parquet: it cannot be read"),
        ("null.jsonl", '{"prompt": "a"}\n{"prompt": null}', "the prompt of row 1 is None"),
        ("numbers.json", '[{"prompt": 1}]', "--prompts numbers.json: the prompt of row 0 is 1: expected text or"),
        (
            "mixed.jsonl",
            '{"prompt": "a"}\n{"prompt": ["a"]}',
            "its column 'prompt' holds values of different kinds (str in row 0, list in row 1)",
        ),
        ("image.jsonl", '{"prompt": "a", "image": "b"}', "has a column 'image': images are not supported"),
        ("prompts.txt", "a", "expected a file that ends in .jsonl, .json, .csv, .parquet"),
    ],
)
def test_bad_prompts(folder, capsys, name, content, message):
    if content is not None:
        (folder / name).write_text(content)
    refused(capsys, message, "--prompts", name)


def test_a_column_of_several_kinds_that_nobody_reads_stops_nothing(folder):
    rows = [{"prompt": "a", "x": 1, "n": 1}, {"prompt": "b", "x": "s"}, {"prompt": "c", "x": [1], "n": 3}]
    (folder / "kinds.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.warns(
        UserWarning, match=r"column 'x' holds values of different kinds \(int in row 0, str in row 1, list"
    ):
        prompts = read_prompts(folder / "kinds.jsonl", "prompt")
    assert prompts.to_dict() == {"prompt": ["a", "b", "c"], "n": [1, None, 3]}


def test_messages_of_sharegpts_never_reach_a_model(folder, capsys):
    """Many templates write nothing of messages without `role`, so that the model would be asked nothing."""
    (folder / "shared.json").write_text('[{"conversations": [{"from": "human", "value": "What is 2+2?"}]}]')
    options = ("--prompts", "shared.json", "--prompt-column", "conversations")
    refused(capsys, "--prompts shared.json: the `conversations` of row 0 is [{'from': 'human'", *options)
    assert not (folder / "samples.parquet").exists()


def test_messages_with_text_or_with_parts_of_it(folder):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    rows = [{"prompt": [{"role": "user", "content": content}]} for content in ("ab", parts)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read_prompts(folder / "rows.jsonl", "prompt")["prompt"][:] == [rows[0]["prompt"]] * 2


def test_a_column_that_would_take_anothers_name(folder, capsys):
    (folder / "both.jsonl").write_text('{"prompt": "a", "question": "b"}')
    options = ("--prompts", "both.jsonl", "--prompt-column", "question")
    refused(capsys, "--prompts both.jsonl, --prompt-column question: it has a column 'prompt' too", *options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--num-generations", "0"), "Sampling(num_generations=0): expected at least 1"),
        (("--prompts-per-part", "0"), "--prompts-per-part 0: expected at least 1"),
        (("--seed", "-1"), "--seed -1: expected a whole number in [0, 2³²)"),
        (("--device", "cdua"), "--device cdua: expected a device such as 'cpu'"),
        (("--device", "cpu:1"), "--device cpu:1: expected one of 1, counted from 0"),
        (("--reward", "damaged"), "Reward model 'damaged': expected a folder"),
        (("--model", "damaged"), "--model damaged: it cannot be loaded (SafetensorError: Error while deserializing"),
        (("--adapter", "foreign"), "--adapter foreign: it cannot be loaded (KeyError: 'FOREIGN'"),
        (("--generator", "vllm"), '--generator vllm: vLLM is not installed. pip install "trl-ext[vllm]"'),
        (("--output", "samples"), "--output samples: expected a name that ends in .parquet"),
        (("--output", "rewards.py/a.parquet"), "expected a folder to write into, but 'rewards.py' is a file"),
        (("--model", "no/model"), "--model no/model: it cannot be loaded"),
        (("--adapter", "no-adapter"), "--adapter no-adapter: it cannot be loaded"),
        (("--tokenizer", "rewards.py"), "no tokenizer could be loaded from rewards.py"),
        (("--reward", "no_module:name"), "--reward no_module:name: it cannot be imported (ModuleNotFoundError"),
        (("--reward", "none.py:name"), "--reward none.py:name: it cannot be imported (FileNotFoundError"),
        (("--reward", "rewards.py:none"), "--reward rewards.py:none: it cannot be imported (AttributeError"),
        (("--reward", "rewards.py:number"), "--reward rewards.py:number: it is 3, which cannot be called"),
        (("--reward", "no-model"), "Reward model 'no-model': expected a folder"),
        (("--reward-weights", "1"), "--reward-weights [1.0]: expected one per --reward-funcs (0), got 1"),
        ((*NEARNESS, "--reward-weights", "nan"), "--reward-weights [nan]: expected finite numbers, got nan"),
        ((*NEARNESS, "--reward-weights", "0"), "--reward-weights [0.0]: expected one that is not 0"),
        (("--generator", "file"), "--generator file: expected --file"),
        (("--generator", "file", "--file", "none.jsonl"), "FileGenerator('none.jsonl'): there is no such file"),
        (("--base-url", "http://h/v1?key=secret"), "--base-url http://h/v1: --generator transformers has no use"),
        (("--file", "prompts.jsonl"), "--file prompts.jsonl: --generator transformers has no use for it"),
    ],
)
def test_bad_input(folder, capsys, monkeypatch, options, message):
    monkeypatch.setitem(sys.modules, "vllm", None)
    shutil.copytree("model", "damaged")
    (folder / "damaged" / "model.safetensors").write_bytes((folder / "model" / "model.safetensors").read_bytes()[:999])
    (folder / "foreign").mkdir()
    (folder / "foreign" / "adapter_config.json").write_text('{"peft_type": "FOREIGN"}')
    refused(capsys, message, *options)
    assert not list(folder.glob("samples*"))


def test_rewards_are_named_as_by_the_other_commands(folder, capsys):
    """And as before: both are the same command, and messages name what was given."""
    run("--reward_funcs", "rewards.py:nearness")
    before = (folder / "samples.parquet").read_bytes()
    (folder / "run.yaml").write_text("reward_funcs: rewards.py:nearness")
    for options in (("--reward", "rewards.py:nearness"), ("--config", "run.yaml")):
        run(*options)
        assert "Complete already" in capsys.readouterr().out
    assert (folder / "samples.parquet").read_bytes() == before
    for flag in ("--reward-funcs", "--reward"):
        refused(capsys, f"error: {flag} no_module:x: it cannot be imported", flag, "no_module:x", output="b.parquet")


def test_no_model(folder, capsys):
    (folder / "answers.jsonl").write_text('{"prompt": "go", "completion": " there"}')
    refused(capsys, "--generator transformers: expected --model", model=None)
    refused(capsys, "of which none is given", "--file", "answers.jsonl", model=None, generator="file")
    refused(capsys, "--generator endpoint: expected --model", model=None, generator="endpoint")


@pytest.mark.parametrize(
    ("generator", "option", "value"),
    [
        ("endpoint", "--dtype", "bfloat16"),
        ("file", "--dtype", "float32"),
        ("endpoint", "--tokenizer", "model"),
        ("endpoint", "--adapter", "model"),
        ("vllm", "--batch-size", "4"),
        ("file", "--temperature", "0.5"),
        ("file", "--top-p", "0.9"),
        ("file", "--top-k", "5"),
        ("file", "--min-p", "0.1"),
        ("file", "--repetition-penalty", "1.2"),
    ],
)
def test_options_that_a_generator_does_not_read(folder, capsys, generator, option, value):
    (folder / "answers.jsonl").write_text('{"prompt": "go", "completion": " there"}')
    given = ("--file", "answers.jsonl") if generator == "file" else ()
    said = f"{option} {value}: --generator {generator} has no use for it. Leave it out."
    refused(capsys, said, *given, option, value, generator=generator)


def test_an_endpoint_that_is_down(folder, capsys, monkeypatch):
    monkeypatch.setattr("openai._base_client.time.sleep", lambda seconds: None)
    where = ("--base-url", "http://127.0.0.1:9/v1")
    refused(capsys, "it could not be asked (", *where, generator="endpoint", model="some-name")
    run()  # nothing was sampled, so nobody is bound


def test_help_is_fast():
    code = "import sys; from trl_ext.cli import _parser; _parser().format_help(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_defaults_are_those_of_sampling():
    args = _parser().parse_args(["generate", "--prompts", "a.jsonl", "--output", "b.parquet"])
    assert {field.name: getattr(args, field.name) for field in fields(Sampling)} == Sampling().settings()


def test_without_a_terminal_progress_is_lines(capsys, monkeypatch):
    monkeypatch.setattr("trl_ext.cli.generate_progress.EVERY", 0.0)
    with PartProgress("sampling", 3) as progress:
        progress.skip(1)
        progress.advance()
    assert capsys.readouterr().err == "sampling: 2 of 3 parts\n"
    monkeypatch.setattr("trl_ext.cli.generate_progress.EVERY", 30.0)
    with PartProgress("sampling", 1) as progress:
        progress.advance()
    assert capsys.readouterr().err == ""


def test_speed():
    progress = PartProgress("sampling", 2, shown=False)
    assert progress.speed(2.0) == ""
    progress.count(Part(0, (0,), ("a",)), [{"completion_ids": None}] * 6)
    assert progress.speed(2.0) == "3 samples/s"
    progress.count(Part(1, (1,), ("b",)), [{"completion_ids": [1] * 4000}])
    assert progress.speed(2.0) == "2,000 tokens/s"
