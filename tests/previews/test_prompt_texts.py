"""Prompts of a run: their file read again, their text encoded once."""

import pytest

from library.errors import ConfigError
from library.previews.prompt_file import PreviewPrompt
from library.previews.prompt_texts import PromptFile, PromptTexts, prompt_problems, words_of
from library.settings.flags.preview import PreviewOptions


def test_a_file_that_is_changed_is_read_again(tmp_path, caplog):
    path = tmp_path / "p.txt"
    path.write_text("a\n")
    file = PromptFile(str(path), "euler_a")
    assert [(each.prompt, each.sampler) for each in file.prompts] == [("a", "euler_ancestral")]
    assert not file.refresh()
    path.write_text("a\nb --ss pndm\n")
    assert file.refresh() and not file.refresh()
    assert [each.prompt for each in file.prompts] == ["a", "b"]
    assert "line 2: pndm means nothing for flow matching; lms is used instead." in caplog.text
    path.write_text("# said otherwise\na\nb --ss lms\n")
    file.refresh()
    assert [each.sampler for each in file.prompts] == ["euler_ancestral", "lms"]


def test_a_broken_edit_is_told_once_and_the_prompts_stay(tmp_path, caplog):
    path = tmp_path / "p.txt"
    path.write_text("a\n")
    file = PromptFile(str(path), "heun")
    path.write_text("b --w 500\n")
    assert not file.refresh()
    assert "line 1  --w 500" in caplog.text and "as they were" in caplog.text
    caplog.clear()
    assert not file.refresh() and not caplog.text
    path.unlink()
    assert not file.refresh() and "no such file" in caplog.text
    assert [each.prompt for each in file.prompts] == ["a"]
    path.write_text("c\n")
    assert file.refresh() and file.prompts[0].prompt == "c"


def test_without_a_file_there_are_no_prompts(caplog):
    file = PromptFile(None, "pndm")
    assert file.prompts == [] and not file.refresh() and not caplog.text


def test_a_sampler_of_the_flag_that_means_nothing_is_told(tmp_path, caplog):
    path = tmp_path / "p.txt"
    path.write_text("a\n")
    (prompt,) = PromptFile(str(path), "pndm").prompts
    assert prompt.sampler == "lms" and "pndm means nothing" in caplog.text


def test_problems_of_the_file_are_those_of_the_start(tmp_path):
    path = tmp_path / "p.txt"
    path.write_text("a --w 500\nb --s x\n")
    found = prompt_problems(PreviewOptions(sample_prompts=str(path)))
    assert [(each.source, each.where) for each in found] == [
        (str(path), "line 1  --w 500"), (str(path), "line 2  --s x")
    ]  # fmt: skip
    with pytest.raises(ConfigError):
        PromptFile(str(path), "heun")
    assert prompt_problems(PreviewOptions()) == []


PROMPTS = [
    PreviewPrompt(prompt="a", negative="n"),
    PreviewPrompt(prompt="b", negative="n"),
    PreviewPrompt(prompt="a", negative="not asked", cfg=1.0),
]


def test_each_text_is_encoded_once_and_kept_while_a_prompt_has_it():
    asked = []

    def encode(texts):
        asked.append(list(texts))
        return {text: {"length": len(text)} for text in asked[-1]}

    texts = PromptTexts(PromptFile(None, "heun"), late=encode)
    assert words_of(PROMPTS) == ["a", "n", "b"]
    texts.use(PROMPTS[:1])
    texts.use(PROMPTS)
    texts.use(PROMPTS)
    assert asked == [["a", "n"], ["b"]]
    texts.use(PROMPTS[2:])
    assert list(texts.outputs) == ["a"] and texts.prompts == (PROMPTS[2],)
