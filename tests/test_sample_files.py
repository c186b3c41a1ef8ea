from trl_ext.generation.sample_files import sample_schema


def test_messages_of_any_row_fit_the_files_columns():
    """The first prompt's fields may be empty where another's are not."""
    prompts = [[{"role": "user", "content": "a", "name": name}] for name in (None, "Bob")]
    kind = sample_schema(prompts, "fingerprint").field("prompt").type
    assert kind.value_type.field("name").type == "string"
