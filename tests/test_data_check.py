"""`rlhf data check`: what it says of files, good and bad."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.command import main
from rlhf_core.recipe import parse_config


def write(folder: Path, *rows: Any) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def check(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[str], str]:
    """Exit code, lines without their padding, and the error."""
    code = main(["data", "check", *words])
    out, err = capsys.readouterr()
    return code, [" ".join(line.split()) for line in out.splitlines()], err


RANKED = {"prompt": "p", "responses": [{"text": "a b", "rank": 1}, {"text": "c", "rank": 2}]}


def test_rankings_with_their_agreement(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    turned = [{"text": "a b", "rank": 2}, {"text": "c", "rank": 1}]
    rows = [{**RANKED, "annotator": name} for name in ("ada", "ben")]
    path = write(tmp_path, *rows, {**RANKED, "annotator": "cleo", "responses": turned})
    code, lines, err = check(capsys, path)
    assert (code, err) == (0, "")
    assert "format ranked responses" in lines
    assert "rows 3, 0 rejected" in lines
    assert "all 3 3 33.3 % -0.33 0.11 0.0 %" in lines  # one of three pairs of people agrees


def test_what_it_prints_for_a_recipe_is_a_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, {"q": "what", "a": "that"})
    named = ["--role", "demonstrations", "--columns", "prompt=q", "response=a"]
    assert main(["data", "check", path, *named]) == 0
    printed = capsys.readouterr().out.split("As a source of a recipe\n")[1]
    (source,) = parse_config(yaml.safe_load(printed)).ingest.sources
    assert (source.path, source.role) == (path, "demonstrations")
    assert source.columns == {"prompt": "q", "response": "a"}


def test_rejected_rows_are_shown_by_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = [{"prompt": f"p{i}", "response": "r"} for i in range(300)]
    path = write(tmp_path, *good, {"prompt": 3, "response": "r"}, {"prompt": 4, "response": "r"})
    code, lines, _ = check(capsys, path)
    assert code == 0  # below 1 %
    assert "rows 302, 2 rejected" in lines
    assert "2 prompt: must be text, got int 301, 302" in lines


def test_bad_rankings_are_not_taken_for_good_prompts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    responses = [{"text": "a", "rank": float("nan")}, {"text": "b", "rank": 1}]
    path = write(tmp_path, {"prompt": "p", "responses": responses, "annotator": "x"})
    code, lines, err = check(capsys, path)
    assert code == 2
    assert "format ranked responses" in lines
    assert "1 responses[0].rank: must be finite, got nan 1" in lines
    assert "1 of 1 rows are bad (100.00%)" in err


@pytest.mark.parametrize(
    ("content", "words", "message"),
    [
        ("", (), "is empty"),
        ('{"a": 1}\n', (), "columns found: a; say it, such as --role demonstrations"),
        ('{"a": 1}\n', ("--columns", "prompt"), "--columns prompt: must look like prompt=NAME"),
        ('{"a": 1}\n', ("--role", "prompts", "--columns", "prompt=b"), "no column 'b' for prompt"),
    ],
)
def test_refused_in_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: str,
    words: tuple[str, ...],
    message: str,
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    code, _, err = check(capsys, str(path), *words)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_the_e2e_rankings(test_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines, _ = check(capsys, str(test_data / "e2e" / "rankings_quality.jsonl.gz"))
    assert code == 0
    assert "rows 2979, 0 rejected" in lines
    assert "prompts 630" in lines
    assert any(line.startswith("all 112 2979 67.1 %") for line in lines)
