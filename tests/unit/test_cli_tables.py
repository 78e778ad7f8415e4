"""Records as text that people read."""

from triptych.cli.tables import LINE_WIDTH, record_text

RECORD = {
    "model": "sat",
    "parameters_trained": 11124974,
    "grid": [14, 14],
    "writes": True,
    "search": {"beams": 3, "length_penalty": 1.0, "prompt": None},
    "card": {"licence": "Apache-2.0", "stages": ["first " * 30, "second"], "test": {"CIDEr-D": 62.6}},
    "parts": {
        "smollm2": {"use": "the language model", "state": "ready"},
        "minilm": {"use": "words", "state": "absent"},
    },
}


def test_a_record_is_sections_of_aligned_values() -> None:
    lines = record_text(RECORD).splitlines()
    assert lines[:4] == [
        "  model               sat",
        "  parameters trained  11,124,974",
        "  grid                14 x 14",
        "  writes              yes",
    ]
    at = lines.index("search")
    assert lines[at - 1] == "" and lines[at + 1 : at + 4] == [
        "  beams           3",
        "  length penalty  1.0",
        "  prompt          not given",
    ]
    assert lines[lines.index("model card: test") + 1] == "  CIDEr-D  62.6"


def test_long_lists_are_wrapped_items() -> None:
    lines = record_text(RECORD).splitlines()
    at = lines.index("model card: stages")
    assert lines[at + 1].startswith("  - first") and lines[at + 2].startswith("    first")
    assert "  - second" in lines
    assert all(len(line) <= LINE_WIDTH for line in lines)


def test_records_of_the_same_fields_are_one_table() -> None:
    lines = record_text(RECORD).splitlines()
    at = lines.index("parts")
    assert lines[at + 1 : at + 4] == [
        "           use                 state",
        "  smollm2  the language model  ready",
        "  minilm   words               absent",
    ]


def test_every_value_is_there() -> None:
    text = record_text({"a": {"b": {"c": [{"d": 1}], "e": (1, 2, 3)}}, "empty": {}, "none": []})
    assert "1, 2, 3" in text and "{'d': 1}" in text
