from datasets import Dataset

from trl_ext.generation.sample_files import prompt_type, sample_schema


def test_messages_of_any_row_fit_the_files_columns():
    """The first prompt's fields may be empty where another's are not."""
    prompts = [[{"role": "user", "content": "a", "name": name}] for name in (None, "Bob")]
    kind = sample_schema(prompt_type(Dataset.from_dict({"prompt": prompts})), "fingerprint").field("prompt").type
    assert kind.value_type.field("name").type == "string"
