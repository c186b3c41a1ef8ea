"""Self-Instruct from seeds to data: against a model that is played, also behind a real HTTP server, killed and resumed."""

import json
import os
import re
import signal
from itertools import pairwise

import pytest
from from_nothing_endpoint import RecordedEndpoint
from tiny import byte_tokenizer, tiny_llama

from trl_ext import EndpointGenerator, InstructionFilter, SelfInstruct, SelfInstructConfig, TaskWording
from trl_ext.generation.endpoint_generator import EndpointError
from trl_ext.self_instruct.seed_tasks import read_seeds
from trl_ext.sequences.samples import Sample
from trl_ext.trainer_kit.seeds import stable_seed

WORDS = [
    "apple",
    "bread",
    "cloud",
    "drum",
    "eagle",
    "flute",
    "grape",
    "horse",
    "island",
    "jungle",
    "kettle",
    "lemon",
    "mirror",
    "needle",
    "ocean",
    "pepper",
]
WORDING = TaskWording()


def seed_rows(number: int = 8) -> list[dict]:
    """The first is a classification."""
    named = [f"Seed {word} about {word} and {other}." for word, other in pairwise(WORDS)]
    rows = [
        {"instruction": each, "instances": [{"input": "", "output": each[5:9]}], "is_classification": False}
        for each in named[:number]
    ]
    instances = [{"input": "I like it.", "output": "good"}, {"input": "I do not.", "output": "bad"}]
    return [rows[0] | {"instances": instances, "is_classification": True}, *rows[1:]]


def played(prompt: str) -> str:
    """What a model might say, which follows from the prompt: a list with one old, one unfit and two new instructions."""
    if prompt.startswith(WORDING.series):
        old = prompt.splitlines()[1][3:]
        new = [" ".join(WORDS[stable_seed(prompt, i, k) % len(WORDS)] for k in range(6)) for i in range(2)]
        return f" {old}\n10. Draw the {new[0]}.\n11. tell {new[0]}\n12. ask {new[1]}\n\nThat is all."
    asked = prompt.rpartition("Task: ")[2]
    if prompt.startswith(WORDING.question):
        return " Yes\n\nTask: and more" if asked.startswith("Tell") else " No"
    if prompt.startswith(WORDING.output_first):
        return "Class label: good\nInput: fine\nClass label: bad\nInput: awful\n\nTask: another"
    return "Example 1\nInput: one\nOutput: two\nExample 2\nInput: three\nOutput: three"


class Player:
    """A generator that plays a model; after `dies_after` parts, `die` is called."""

    name = "player"

    def __init__(self, answers=played, dies_after=None, die=None):
        self.answers, self.left, self.die, self.asked = answers, dies_after, die, []

    def generate(self, parts, sampling, policy):
        for part in parts:
            if self.left == 0:
                self.die()
            self.left = None if self.left is None else self.left - 1
            self.asked += part.prompts
            rest = {"prompt_ids": None, "completion_ids": None, "ended": True, "generator": "player", "seed": 0}
            rows = zip(part.rows, part.prompts, strict=True)
            yield part, [Sample(row=r, sample=0, prompt=p, completion=self.answers(p), **rest) for r, p in rows]

    def settings(self):
        return {}


def config(**changes) -> SelfInstructConfig:
    return SelfInstructConfig(**{"num_instructions": 12, "batch_size": 2, "num_examples": 4} | changes)


def run(folder, generator, seeds=None, **changes):
    return SelfInstruct(generator=generator, config=config(**changes)).run(seeds or seed_rows(), folder)


def test_a_whole_run_against_a_server(tmp_path):
    with RecordedEndpoint(played) as server:
        made = run(tmp_path, EndpointGenerator("m", server.url, "key", max_retries=0))
        series = [each for each in server.asked if each["prompt"].startswith(WORDING.series)]
    assert (series[0]["temperature"], series[0]["top_p"], series[0]["max_tokens"]) == (0.7, 0.5, 1024)
    assert {each["n"] for each in server.asked} == {1}
    counts = made.to_dict()
    assert (counts["instructions"], counts["tasks"], counts["without_instance"]) == (12, 12, 0)
    told = [task for task in made.tasks if task.is_classification]
    assert {task.instruction[:4] for task in told} == {"Tell"}
    assert told[0].instances == (("fine", "good"), ("awful", "bad"))  # up to the stop text
    asked = [task for task in made.tasks if not task.is_classification]
    assert asked[0].instances == (("one", "two"),)
    assert counts["left_out"]["instances"] == {"output equals input": len(asked)}
    left_out = counts["left_out"]["instructions"]
    assert left_out["names what a model of text has not"] == left_out["similar to another"] == len(series)
    assert read_seeds(tmp_path / "tasks.jsonl", call="") == list(made.tasks)  # seeds of a further run
    assert json.loads((tmp_path / "counts.json").read_text()) == counts


def test_a_penalty_on_what_was_said():
    """Of lists and instances; a word of yes or no is none of them."""
    penalised = config(repetition_penalty=1.2)
    penalties = [penalised.sampling(step).repetition_penalty for step in ("instructions", "kinds", "instances")]
    assert penalties == [1.2, 1.0, 1.2]


def test_what_is_shown(tmp_path):
    """Eight seeds while nothing is made; then six of them and two made ones, in any order."""
    player, seeds = Player(), [row["instruction"] for row in seed_rows()]
    made = run(tmp_path, player, batch_size=1)
    series = [each for each in player.asked if each.startswith(WORDING.series)]
    shown = [re.findall(r"^\d+\. (.*)$", each, re.M) for each in series]
    assert [len(each) for each in shown] == [8] * len(shown)
    assert set(shown[0]) == set(seeds) and shown[0] != seeds
    assert [sum(each in seeds for each in one) for one in shown[1:]] == [6] * (len(shown) - 1)
    places = {i for one in shown[1:] for i, each in enumerate(one) if each not in seeds}
    assert max(places) > 1  # made ones are not always in front
    assert {each for one in shown for each in one} <= {*seeds, *(task.instruction for task in made.tasks)}


def test_data_for_sft_and_for_r3(tmp_path):
    made = run(tmp_path, Player())
    rows = made.sft()
    assert len(rows) == sum(len(task.instances) for task in made.tasks)
    task = made.tasks[0]
    assert rows[0]["prompt"] == f"{task.instruction}\n\n{task.instances[0].input}"
    assert rows[0]["completion"] == f"\n\n{task.instances[0].output}"
    [user] = made.sft(messages=True)[0]["prompt"]
    assert user == {"role": "user", "content": rows[0]["prompt"]}
    assert made.sft(messages=True)[0]["completion"][0]["content"] == task.instances[0].output
    prompts = made.prompts()
    assert prompts.column_names == ["prompt", "reference", "query_type", "query_type_confidence"]
    types = dict(zip(prompts["prompt"], prompts["query_type"], strict=True))
    assert {types[row["prompt"]] for row in rows if row["prompt"].startswith("Tell")} == {"closed"}
    assert made.sft(prompt_with_input="{input}", completion=" {output}")[0]["prompt"] == task.instances[0].input
    for name in ("prompt_with_input", "completion"):
        with pytest.raises(ValueError, match="the template 3 is no text"):
            made.sft(**{name: 3})
    with pytest.raises(ValueError, match=r"asks for 'task'; there are \{instruction\}, \{input\}"):
        made.sft(prompt="{task}", prompt_with_input="{task}")


@pytest.mark.parametrize("parts", [0, 2, 4, 7])
def test_killed_and_resumed(tmp_path, parts):
    """Nothing that was answered is asked again, and the tasks are the same."""
    whole = Player()
    expected = run(tmp_path / "whole", whole)
    child = os.fork()
    if child == 0:
        try:
            run(tmp_path / "killed", Player(dies_after=parts, die=lambda: os.kill(os.getpid(), signal.SIGKILL)))
        finally:
            os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    rest = Player()
    assert run(tmp_path / "killed", rest) == expected
    assert rest.asked == whole.asked[2 * parts :]
    again = Player()
    assert run(tmp_path / "killed", again) == expected and again.asked == []


def test_a_line_that_was_half_written_is_asked_again(tmp_path):
    first, again = Player(), Player()
    expected = run(tmp_path, first)
    lines = (tmp_path / "answers.jsonl").read_bytes()
    (tmp_path / "answers.jsonl").write_bytes(lines[:-9])
    assert run(tmp_path, again) == expected
    assert again.asked == first.asked[-2:]
    assert (tmp_path / "answers.jsonl").read_bytes() == lines


def test_the_seed_decides(tmp_path):
    runs = [run(tmp_path / str(i), Player(), seed=seed).tasks for i, seed in enumerate((1, 1, 2))]
    assert runs[0] == runs[1] != runs[2]


def test_a_server_that_is_down_and_comes_back(tmp_path):
    is_up = {"left": 5}

    def answers(prompt):
        is_up["left"] -= 1
        return played(prompt) if is_up["left"] >= 0 else None

    with RecordedEndpoint(answers) as server:
        generator = EndpointGenerator("m", server.url, "key", max_retries=0, concurrency=1)
        with pytest.raises(EndpointError, match=r"it refused.*resume the run for the missing ones alone"):
            run(tmp_path, generator)
        is_up["left"] = 1000
        assert run(tmp_path, generator) == run(tmp_path / "other", Player())


def test_answers_without_an_instruction_end_it(tmp_path):
    player = Player(lambda prompt: "I am a teapot" if prompt.startswith(WORDING.series) else "No")
    with pytest.raises(
        ValueError, match=r"0 of 12 instructions, and then 3 batches without a new one\. Requests: 6 for .*"
    ) as error:
        run(tmp_path, player, patience=3, instruction_filter=InstructionFilter(shortest=5))
    assert "Left out: instructions: 6 too short." in str(error.value)
    assert len(player.asked) == 6


def test_fewer_instructions_than_asked_for_are_said(tmp_path):
    def answers(prompt):
        return " Name all of the rivers.\n\n" if prompt.startswith(WORDING.series) else played(prompt)

    with pytest.warns(UserWarning, match=r"1 of 12 instructions, and then 2 batches.*5 similar to another"):
        made = run(tmp_path, Player(answers), patience=2)
    assert [task.instruction for task in made.tasks] == ["Name all of the rivers."]


def test_instructions_without_an_instance(tmp_path):
    player = Player(lambda prompt: "" if prompt.startswith(WORDING.input_first) else played(prompt))
    made = run(tmp_path / "some", player)
    assert made.to_dict()["without_instance"] == made.left_out["instances"]["not in the asked form"] > 0
    nothing = Player(lambda prompt: played(prompt) if prompt.startswith(WORDING.series) else "")
    with pytest.raises(ValueError, match=r"of 12 instructions, none got an instance.*12 not in the asked form"):
        run(tmp_path / "none", nothing)


def test_a_model_of_our_own_is_asked(tmp_path):
    """A random model says nothing that can be read, which ends it; the requests fit its window."""
    tokenizer = byte_tokenizer()
    maker = SelfInstruct(
        tiny_llama(tokenizer, max_position_embeddings=2048),
        tokenizer,
        config=config(patience=1, max_instruction_tokens=8, batch_size=1),
    )
    with pytest.raises(ValueError, match="0 of 12 instructions"):
        maker.run(seed_rows(), tmp_path)
    [line] = (tmp_path / "answers.jsonl").read_text().splitlines()
    assert len(json.loads(line)["answers"]) == 1


def test_as_messages(tmp_path):
    player = Player(lambda prompt: [{"role": "assistant", "content": played(prompt[0]["content"])}])
    made = run(tmp_path, player, chat=True)
    assert len(made.tasks) == 12
    assert [message["role"] for message in player.asked[0]] == ["user"]


KOREAN = TaskWording(
    series="여러 가지 과제를 만들어 보자:",
    question="다음 과제는 답이 정해진 분류 과제인가?",
    is_classification="분류인가?",
    yes="예",
    no="아니요",
    input_first="다음 과제의 예를 들어라.",
    output_first="각 분류에 맞는 입력을 써라.",
    task="과제",
    example="예시",
    input="입력",
    output="출력",
    label="분류",
)


def test_in_korean(tmp_path):
    """Not a word of English is asked, and the rules are those of the language."""
    seeds = [
        {
            "instruction": f"{word} 이야기를 짧게 하나 써라",
            "output": f"{word} 이야기",
            "is_classification": word == "바다",
        }
        for word in ["바다", "산", "강", "숲", "별", "달", "해", "비"]
    ]

    def answers(prompt):
        if prompt.startswith(KOREAN.series):
            return (
                " 좋아하는 음식을 세 가지 말해라\n10. 이미지를 하나 그려 보여라\n11. 친구에게 보낼 인사말을 지어라\n\n"
            )
        if prompt.startswith(KOREAN.question):
            return " 아니요"
        return "예시 1\n입력: 여름\n출력: 수박"

    player = Player(answers)
    filter_ = InstructionFilter(keywords=("이미지", "그래프"), forbidden_starts=(), ascii_start=False)
    made = run(tmp_path, player, seeds, num_instructions=2, wording=KOREAN, instruction_filter=filter_)
    assert [task.instruction for task in made.tasks] == [
        "좋아하는 음식을 세 가지 말해라",
        "친구에게 보낼 인사말을 지어라",
    ]
    assert made.tasks[0].instances == (("여름", "수박"),)
    assert made.left_out["instructions"]["names what a model of text has not"] == 2
    assert not any(re.search("[A-Za-z]", prompt) for prompt in player.asked)


# Bad input


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        (seed_rows(5), r"the seeds are 5 tasks, and each request shows 8 .* Add 3, or lower these"),
        ([*seed_rows(), {"instruction": " "}], r"SelfInstruct.run: seed 8 is .*expected `instruction`, text"),
        ([*seed_rows(), {"prompt": "Sing."}], "seed 8 is .*prompt"),
        ([*seed_rows(), "Sing."], "seed 8 is"),
        (3, r"SelfInstruct.run\(seeds=…\): expected a list, got int"),
        ({"instruction": "Sing."}, "expected a list, got dict"),
        ([*seed_rows(), {"instruction": "Sing.", "instances": [{"input": "a"}]}], "seed 8 is"),
        ([*seed_rows(), {"instruction": "Sing.", "is_classification": "no"}], "seed 8 is"),
        (
            [{"instruction": f"Sing {word}."} for word in WORDS],
            "none of the seeds but classifications has an instance",
        ),
    ],
)
def test_seeds_that_are_none(tmp_path, seeds, said):
    with pytest.raises(ValueError, match=said):
        run(tmp_path, Player(), seeds)
    assert not list(tmp_path.iterdir())


def test_a_seed_file_that_is_damaged(tmp_path):
    path = tmp_path / "seeds.jsonl"
    path.write_text(json.dumps(seed_rows()[0]) + "\n{oh\n")
    with pytest.raises(ValueError, match=r"SelfInstruct.run: the seeds '.*seeds.jsonl' cannot be read \(.*line 2"):
        run(tmp_path, Player(), path)
    with pytest.raises(ValueError, match="cannot be read"):
        run(tmp_path, Player(), tmp_path / "none.jsonl")


def test_seeds_of_one_kind_ask_for_no_kind(tmp_path):
    with pytest.warns(UserWarning, match="without seeds of both kinds"):
        made = run(tmp_path, Player(), [row | {"is_classification": None} for row in seed_rows()])
    assert made.asked.keys() == {"instructions", "instances"}


def test_a_folder_of_another_run_is_refused(tmp_path):
    run(tmp_path, Player())
    with pytest.raises(ValueError, match=r"holds what another run has written.*seed"):
        run(tmp_path, Player(), seed=1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_instructions": 0}, r"SelfInstructConfig\(num_instructions=0\): expected at least 1"),
        ({"top_p": 0.0}, "a share"),
        ({"num_examples": 1}, "one of each kind"),
        ({"wording": "Sing:"}, "expected TaskWording"),
        ({"seed": -1}, "seed"),
    ],
)
def test_options_that_are_none(options, said):
    with pytest.raises(ValueError, match=said):
        SelfInstructConfig(**options)


def test_nobody_to_ask():
    with pytest.raises(ValueError, match="nobody is there to ask"):
        SelfInstruct()
    with pytest.raises(ValueError, match="SelfInstruct: expected a generator"):
        SelfInstruct(generator="gpt")
