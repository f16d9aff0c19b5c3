"""A cell's key: equal for equal content, and the same one for ever, since stored results are found by it."""

from nystra_bench.sweep.cell import Cell, canonical_json

CONTENT = {
    "measure": {"name": "quality", "version": "1", "params": {}},
    "model": {"name": "swinir_denoise_w8", "weights": "ab" * 32, "version": "1", "native_window": 8},
    "window": 32,
    "position_bias": "interpolate",
    "task": {"name": "denoise", "version": "1", "dataset": "bundled", "params": {"sigma": 25.0}, "data": "cd" * 32},
    "attention": {"name": "nystra", "version": "1", "params": {"guard": 5.0, "init": "global", "landmarks": 16}},
    "device": "cpu",
    "dtype": "float32",
    "settings": {},
}


def reversed_keys(value):
    if isinstance(value, dict):
        return {key: reversed_keys(value[key]) for key in reversed(value)}
    return value


def test_the_key_of_known_content_never_changes():
    assert Cell.of(CONTENT).key == "7115ae73bc2f5983c37206a58dc57c799a0293166f0d9febf5cc79784d781b95"


def test_the_order_of_entries_does_not_matter_and_every_entry_does():
    cell = Cell.of(CONTENT)
    assert Cell.of(reversed_keys(CONTENT)) == cell
    assert len({cell, Cell.of(reversed_keys(CONTENT))}) == 1
    changed = {Cell.of(CONTENT | {name: "changed"}).key for name in CONTENT}
    assert len(changed | {cell.key}) == len(CONTENT) + 1


def test_content_comes_back_with_the_schema():
    assert Cell.of(CONTENT).content == {"schema": 2, **CONTENT}


def test_json_has_no_white_space_and_numbers_that_json_lacks_are_text():
    assert canonical_json({"b": [float("inf"), 1.5], "a": "é"}) == '{"a":"é","b":["inf",1.5]}'


def test_the_line_for_people_names_everything():
    line = Cell.of(CONTENT).describe()
    for part in ("quality", "swinir_denoise_w8", "window=32", "bias=interpolate", "sigma=25", "landmarks=16", "cpu"):
        assert part in line
