"""The ends of a response that a model folder names."""

import pytest

from harness.backbones.language_model.sampler import ends_named_by
from harness.core.errors import UserError


def folder_with(tmp_path, content: str | None):
    if content is not None:
        (tmp_path / "generation_config.json").write_text(content)
    return tmp_path


@pytest.mark.parametrize(
    ("content", "ends"),
    [
        (None, ()),
        ("{}", ()),
        ('{"eos_token_id": null}', ()),
        ('{"eos_token_id": []}', ()),
        ('{"eos_token_id": 0}', (0,)),
        ('{"eos_token_id": 128001, "temperature": 0.6}', (128001,)),
        ('{"eos_token_id": [128009, 128001, 128008, 128001]}', (128001, 128008, 128009)),
    ],
)
def test_an_end_is_an_id_or_a_list_of_ids_or_is_not_named(tmp_path, content, ends):
    assert ends_named_by(folder_with(tmp_path, content)) == ends


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ('{"eos_token_id": "</s>"}', r"eos_token_id must be a token id or a list of them, got \['</s>'\]"),
        ('{"eos_token_id": true}', "eos_token_id must be"),
        ('{"eos_token_id": [1, 2.0]}', "eos_token_id must be"),
        ('{"eos_token_id": [[1]]}', "eos_token_id must be"),
        ('{"eos_token_id": {"a": 1}}', "eos_token_id must be"),
        ('{"eos_token_id": -1}', "eos_token_id must be"),
        ("[1]", "cannot be read"),
        ('{"eos_token_id": ', "cannot be read"),
        ('{"eos_token_id": ' + "[" * 100_000, "cannot be read"),
    ],
)
def test_anything_else_is_refused_in_one_line(tmp_path, content, why):
    with pytest.raises(UserError, match=rf"generation_config\.json: {why}") as error:
        ends_named_by(folder_with(tmp_path, content))
    assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 400
