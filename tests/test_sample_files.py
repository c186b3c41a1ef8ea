import tracemalloc

import numpy as np
import pytest
from datasets import Dataset

from trl_ext.generation.protocol import Part
from trl_ext.generation.sample_files import Parts, SampleFiles, prompt_type, sample_schema
from trl_ext.self_training.schedule import Schedule


def test_messages_of_any_row_fit_the_files_columns():
    """The first prompt's fields may be empty where another's are not."""
    prompts = [[{"role": "user", "content": "a", "name": name}] for name in (None, "Bob")]
    kind = sample_schema(prompt_type(Dataset.from_dict({"prompt": prompts})), "fingerprint").field("prompt").type
    assert kind.value_type.field("name").type == "string"


def in_memory_at_once(dataset: Dataset, rows: list[int], *, size: int) -> list[Part]:
    """Parts as they are, whoever makes them."""
    cuts = [rows[at : at + size] for at in range(0, len(rows), size)]
    return [Part(i, tuple(cut), tuple(dataset[cut]["prompt"])) for i, cut in enumerate(cuts)]


@pytest.mark.parametrize(
    "prompts", [[f"say {i}" for i in range(11)], [[{"role": "user", "content": c}] for c in "abcdefghijk"]]
)
@pytest.mark.parametrize("rows", [range(11), [1, 2, 5, 9, 10]])
def test_parts_are_cut_and_read_in_order(prompts, rows):
    dataset = Dataset.from_dict({"prompt": prompts, "wanted": range(11)})
    parts, expected = Parts(dataset, np.array(rows), size=3), in_memory_at_once(dataset, list(rows), size=3)
    assert list(parts) == expected and len(parts) == len(expected) and parts[-1] == expected[-1]
    assert list(parts[1::2]) == expected[1::2] and list(parts[1::2][1:]) == expected[1::2][1:]  # a process's share
    assert all(type(row) is int for part in parts for row in part.rows)  # seeds are made of their digits
    with pytest.raises(IndexError):
        parts[len(parts)]


def test_parts_on_disk_are_not_missing(tmp_path):
    dataset = Dataset.from_dict({"prompt": list("abcdef")})
    files, parts = SampleFiles(tmp_path / "samples.parquet"), Parts(dataset, size=2)
    files.parts.mkdir()
    files.scored(1).touch()
    assert [part.index for part in parts.missing(files)] == [0, 2]
    assert list(parts.missing(files)) == [parts[0], parts[2]]
    assert not Parts(dataset, size=2, indices=[1]).missing(files)


def test_parts_of_many_prompts_take_little_memory():
    """Beside the data set; all prompts at once would be some 8 MB here."""
    count = 100_000
    dataset = Dataset.from_dict({"prompt": [f"of which colour is the cat of Anna {i}?" for i in range(count)]})
    schedule = Schedule(count, count, 1, 1, steps_per_improve=1, rows_per_step=1, seed=0)
    tracemalloc.start()
    parts = Parts(dataset, schedule.stage_rows(0), size=256)
    assert sum(len(part.prompts) for part in parts) == count
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5e6
