"""From blocks to choices: products, each cell once, and what the user gives in place of axes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nystra_bench.configuration import Catalogue
from nystra_bench.errors import UserError
from nystra_bench.sweep.grid import Overrides, blocks_of, expand

BLOCK = {"model": "m", "task": "t", "attention": "exact", "device": "cpu", "measure": "quality"}


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory):
    folder = tmp_path_factory.mktemp("options")
    options = {
        "model": {"m": "weights: w", "other": "weights: v"},
        "task": {"t": "sigma: 25\nlimit: null\n"},
        "attention": {"exact": "_target_: a.Exact", "nystra": "_target_: a.Nystra\nlandmarks: 16\niterations: 2\n"},
        "measure": {
            name: f"_target_: nystra_bench.measure.{name}.{name.capitalize()}\n"
            for name in ("quality", "latency", "memory")
        },
        "device": {"cpu": "type: cpu\nthreads: null\n", "cuda": "type: cuda\nthreads: null\n"},
    }
    for choice, files in options.items():
        (folder / choice).mkdir()
        for name, text in files.items():
            (folder / choice / f"{name}.yaml").write_text(text)
    return Catalogue([folder])


def grid(catalogue, *blocks, axes=None, **parameters):
    return expand([BLOCK | block for block in blocks], Overrides(axes or {}, parameters), catalogue)


def named(choices):
    """Attentions with the parameters that stand in their configuration, as text."""
    return [
        c.attention.name + "".join(f" {k[0]}{v}" for k, v in c.attention.config.items() if not k.startswith("_"))
        for c in choices
    ]


def message(catalogue, *blocks, axes=None, **parameters):
    with pytest.raises(UserError) as caught:
        grid(catalogue, *blocks, axes=axes, **parameters)
    return str(caught.value)


def test_a_block_is_the_product_of_its_axes_in_order(catalogue):
    nystra = {"name": "nystra", "landmarks": [8, 16], "iterations": [2, 6]}
    block = {"attention": ["exact", nystra], "window_size": [16, 32], "position_bias": "drop"}
    choices = grid(catalogue, block)
    names = ["exact", "nystra l8 i2", "nystra l8 i6", "nystra l16 i2", "nystra l16 i6"]
    assert named(choices) == names * 2
    assert [c.window_size for c in choices] == [16] * 5 + [32] * 5


def test_lists_of_a_mapping_keep_the_other_parameters_at_their_defaults(catalogue):
    assert named(grid(catalogue, {"attention": {"name": "nystra", "iterations": 6}})) == ["nystra l16 i6"]


def test_the_user_replaces_the_axis_of_every_block(catalogue):
    blocks = [{"window_size": 16, "position_bias": "drop"}, {"attention": "nystra", "position_bias": "drop"}]
    choices = grid(catalogue, *blocks, axes={"window_size": [32, 64], "attention": ["exact"]})
    assert [(c.window_size, c.attention.name) for c in choices] == [(32, "exact"), (64, "exact")]


def test_a_parameter_reaches_only_the_options_that_take_it(catalogue):
    block = {"attention": ["exact", {"name": "nystra", "landmarks": 4, "iterations": 6}]}
    choices = grid(catalogue, block, attention={"landmarks": [8, 16]})
    assert named(choices) == ["exact", "nystra l8 i6", "nystra l16 i6"]


def test_exact_with_many_landmarks_is_one_cell(catalogue):
    choices = grid(catalogue, {}, {}, axes={"attention": ["exact", "nystra"]}, attention={"landmarks": [8, 16, 32]})
    assert named(choices) == ["exact", "nystra l8 i2", "nystra l16 i2", "nystra l32 i2"]


def test_narrowing_keeps_all_entries_of_a_block_with_that_name(catalogue):
    block = {
        "attention": [
            "exact",
            {"name": "nystra", "landmarks": 8, "iterations": 2},
            {"name": "nystra", "landmarks": 16, "iterations": 6},
        ],
        "task": {"name": "t", "limit": 4},
    }
    choices = grid(catalogue, block, axes={"attention": ["nystra"], "task": ["t"]})
    assert named(choices) == ["nystra l8 i2", "nystra l16 i6"]
    assert {c.task.config["limit"] for c in choices} == {4}


def test_narrowing_keeps_an_entry_at_its_defaults_beside_one_with_parameters(catalogue):
    block = {"attention": ["exact", "nystra", {"name": "nystra", "landmarks": 32}]}
    choices = grid(catalogue, block, axes={"attention": ["nystra", "exact"]})
    assert named(choices) == ["nystra l16 i2", "nystra l32 i2", "exact"]


def test_the_native_bias_is_the_native_window_whatever_else_is_asked(catalogue):
    choices = grid(catalogue, {"window_size": [16, 32], "position_bias": ["native", "drop"]})
    found = [(c.window_size, c.position_bias) for c in choices]
    assert found == [("native", "native"), (16, "drop"), (32, "drop")]


def test_parameters_reach_the_devices_that_stand_for_all(catalogue):
    choices = grid(catalogue, {"device": "available"}, device={"threads": [1]})
    assert [(c.device.name, c.device.config["threads"], c.device.optional) for c in choices] == [
        ("cpu", 1, True),
        ("cuda", 1, True),
    ]
    assert not grid(catalogue, {})[0].device.optional


@pytest.mark.parametrize(
    ("block", "axes", "parameters", "parts"),
    [
        ({"atention": "exact"}, {}, {}, ["atention", "did you mean attention?"]),
        ({"attention": "nistra"}, {}, {}, ["attention=nistra", "did you mean nystra?", "exact, nystra"]),
        ({"attention": {"name": "nystra", "landmark": 8}}, {}, {}, ["landmark", "did you mean landmarks?"]),
        ({"attention": "../device/cpu"}, {}, {}, ["attention=../device/cpu", "exact, nystra"]),
        ({}, {"model": ["n"]}, {}, ["model=n", "accepted are m, other"]),
        ({}, {}, {"attention": {"landmarks": [8]}}, ["attention.landmarks=8", "no chosen attention"]),
        ({}, {}, {"task": {"sgma": [8, 9]}}, ["task.sgma=8,9", "did you mean task.sigma?"]),
        ({"position_bias": "dropp"}, {}, {}, ["position_bias=dropp", "did you mean drop?"]),
        ({"dtype": "int8"}, {}, {}, ["dtype=int8", "float32"]),
        ({"measure": ["speed"]}, {}, {}, ["measure=speed", "latency"]),
        ({"measure": []}, {}, {}, ["no cell"]),
        ({"window_size": 1}, {}, {}, ["window_size=1", "from 2 on"]),
        ({"window_size": True}, {}, {}, ["window_size=True"]),
        ({"window_size": 8.5}, {}, {}, ["window_size=8.5"]),
    ],
)
def test_mistakes_are_named_with_what_is_accepted(catalogue, block, axes, parameters, parts):
    text = message(catalogue, block, axes=axes, **parameters)
    for part in parts:
        assert part in text


@pytest.mark.parametrize("blocks", [[], None, {"model": "m"}, ["exact"], [{"task": "t"}]])
def test_blocks_that_are_none_are_a_mistake(catalogue, blocks):
    with pytest.raises(UserError, match=r"sweep\.blocks"):
        expand(blocks, Overrides(), catalogue)


axis = st.lists(st.integers(2, 40), min_size=1, max_size=4, unique=True)


@settings(max_examples=60, deadline=None)
@given(axis, axis, axis, st.permutations(["interpolate", "drop"]), st.booleans())
def test_count_and_order_are_those_of_the_product(catalogue, windows, landmarks, iterations, biases, twice):
    nystra = {"name": "nystra", "landmarks": landmarks, "iterations": iterations}
    block = {"attention": ["exact", nystra], "window_size": windows, "position_bias": biases}
    choices = grid(catalogue, *[block] * (1 + twice))
    found = [(c.window_size, c.position_bias, n) for c, n in zip(choices, named(choices), strict=True)]
    names = ["exact", *(f"nystra l{m} i{i}" for m in landmarks for i in iterations)]
    assert found == [(w, b, n) for w in windows for b in biases for n in names]


def test_a_sweep_includes_others_first_and_their_blocks_are_not_repeated(catalogue, tmp_path):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "a.yaml").write_text("blocks: [{model: m}]\n")
    (tmp_path / "sweep" / "b.yaml").write_text("include: a\nblocks: [{model: other}]\n")
    (tmp_path / "sweep" / "loop.yaml").write_text("include: [a, loop]\n")
    sweeps = Catalogue([tmp_path])
    assert blocks_of({"include": ["b"], "blocks": [{"model": "x"}]}, sweeps) == [
        {"model": "m"},
        {"model": "other"},
        {"model": "x"},
    ]
    assert blocks_of({"blocks": 3}, sweeps) == 3  # what is no list is refused where blocks are read
    with pytest.raises(UserError, match="includes itself"):
        blocks_of(sweeps.option("sweep", "loop"), sweeps, ("loop",))
    with pytest.raises(UserError, match="nowhere"):
        blocks_of({"include": ["nowhere"]}, sweeps)
    assert len(grid(catalogue, {}, {})) == 1
