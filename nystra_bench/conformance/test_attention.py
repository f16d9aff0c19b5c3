"""What every attention keeps to.

The windows here have 16 x 16 tokens; a method whose YAML does not fit them says so by ``refuses`` and is tested on
the first other square window of ``SIDES`` that it accepts.

Three properties do not hold for every method; a class states those that it has by the attributes ``rows_sum_to_one``,
``permutation_equivariant`` and ``exact_with_all_landmarks`` (see ``Attention``).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nystra_bench.attention.base import Attention, Window
from nystra_bench.attention.pinv import INITS
from nystra_bench.conformance.references import exact, random_qkv, relative_error
from nystra_bench.models.windows import WindowAttention, attention_sites, plug

IMAGES, WINDOWS, HEADS, DIM = 2, 3, 2, 16
SIDES = (16, 8, 32, 64, 7, 12, 4)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def make(subject, **parameters) -> Attention:
    """The method of this option; ``parameters`` replace those of its own that it has."""
    return subject.make(**parameters).eval()


def has_pseudo_inverse(subject) -> bool:
    """Whether it takes the start of the iteration for a pseudo-inverse (``attention.pinv``)."""
    return subject.parameters.get("init") in INITS


@pytest.fixture(autouse=True)
def without_compilers(monkeypatch):
    """A method that compiles itself runs what it would compile: compiling takes tens of seconds for each shape here."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))


@pytest.fixture
def attention(subject) -> Attention:
    return make(subject)


@pytest.fixture
def side(subject, attention) -> int:
    for side in SIDES:
        if attention.refuses(side, side) is None:
            return side
    pytest.fail(f"{subject} refuses square windows of {', '.join(map(str, SIDES))}: {attention.refuses(side, side)}")


@pytest.fixture
def window(side) -> Window:
    """A window with bias, of an image whose last window is cut in two by the shift."""
    tokens = side * side
    bias = torch.randn(HEADS, tokens, tokens, generator=torch.Generator().manual_seed(1))
    regions = torch.zeros(WINDOWS, tokens, dtype=torch.int64)
    regions[-1, tokens // 2 :] = 1
    return Window(side, side, lambda: bias, lambda: regions)


@pytest.fixture
def qkv(side):
    return random_qkv(IMAGES * WINDOWS, HEADS, side * side, DIM, seed=2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim_v", (DIM, 5))
def test_output_has_the_shape_and_dtype_of_v(attention, window, side, dtype, dim_v):
    q, k, v = random_qkv(IMAGES * WINDOWS, HEADS, side * side, DIM, dim_v, dtype=dtype)
    with torch.inference_mode():
        out = attention(q, k, v, window)
    assert out.shape == v.shape and out.dtype == dtype
    assert out.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("largest", (10, 60))
@pytest.mark.parametrize("tokens", ("alike", "uneven", "equal"))
def test_output_is_finite_for_large_logits(attention, window, qkv, dtype, largest, tokens):
    """Also where tokens have very different lengths, and where all of them are the same."""
    q, k, v = qkv
    if tokens == "uneven":
        lengths = torch.logspace(-2, 1, q.shape[-2])[:, None]
        q, k = q * lengths, k * lengths.flip(0)
    elif tokens == "equal":
        q = k = k[..., :1, :].expand_as(k)
    q = q * (largest / (q @ k.transpose(-2, -1)).abs().amax((-2, -1), keepdim=True))
    with torch.inference_mode():
        out = attention(q.to(dtype), k.to(dtype), v.to(dtype), window)
    assert out.isfinite().all()


def test_forward_is_the_matrix_times_v(attention, window, qkv):
    if not attention.linear_in_values:
        pytest.skip("its values have a say in the weights, or bound the output")
    q, k, v = qkv
    with torch.inference_mode():
        matrix, out = attention.matrix(q, k, window), attention(q, k, v, window)
    assert matrix.shape == (*q.shape[:-1], q.shape[-2])
    assert relative_error(out, matrix.double() @ v.double()) < 1e-4


def test_rows_of_the_matrix_sum_to_one(attention, window, qkv):
    if not attention.rows_sum_to_one:
        pytest.skip("its rows need not sum to one")
    with torch.inference_mode():
        matrix = attention.matrix(*qkv[:2], window)
    torch.testing.assert_close(matrix.sum(-1), torch.ones(matrix.shape[:-1]), rtol=0, atol=1e-4)


def test_order_of_the_tokens_does_not_matter(attention, window, side, qkv):
    if not attention.permutation_equivariant:
        pytest.skip("its result depends on the order of the tokens")
    order = torch.randperm(side * side, generator=torch.Generator().manual_seed(3))
    bias, regions = window.bias()[:, order][:, :, order], window.regions()[:, order]
    with torch.inference_mode():
        expected = attention(*qkv, window)[..., order, :]
        actual = attention(*(t[..., order, :] for t in qkv), Window(side, side, lambda: bias, lambda: regions))
    assert relative_error(actual, expected) < 5e-5


def test_images_and_windows_of_a_batch_do_not_influence_one_another(subject, window, side, qkv):
    """The published start ``init=global`` of a pseudo-inverse is the exception; the other one is tested then."""
    attention = make(subject, **({"init": "matrix"} if has_pseudo_inverse(subject) else {}))
    lengths = torch.linspace(0.5, 2, IMAGES * WINDOWS)[:, None, None, None]
    q, k, v = qkv
    q = q * lengths
    with torch.inference_mode():
        together = attention(q, k, v, window)
        for image in range(IMAGES):
            own = slice(image * WINDOWS, (image + 1) * WINDOWS)
            assert relative_error(attention(q[own], k[own], v[own], window), together[own]) < 1e-5
        unmasked = Window(side, side, window.bias)
        together = attention(q, k, v, unmasked)
        for i in range(IMAGES * WINDOWS):
            own = slice(i, i + 1)
            assert relative_error(attention(q[own], k[own], v[own], unmasked), together[own]) < 1e-5


def test_memory_that_was_not_written_is_not_read(attention, window, qkv):
    """PyTorch fills what it allocates with NaN here, where it would leave what happens to be there."""
    with torch.inference_mode():
        expected = attention(*qkv, window)
        torch.use_deterministic_algorithms(True)
        try:
            assert torch.empty(8).isnan().all()
            poisoned = attention(*qkv, window)
        finally:
            torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(poisoned, expected, rtol=1e-5, atol=1e-6)


def test_with_all_tokens_as_landmarks_it_is_softmax_attention(subject, attention):
    """Nystrom forms among them, for which the kernel of these tokens is well conditioned: about 3 on the diagonal."""
    nystrom = has_pseudo_inverse(subject) and "landmarks" in subject.parameters
    if not (nystrom or attention.exact_with_all_landmarks):
        pytest.skip("it is another approximation")
    attention = make(subject, landmarks=DIM, iterations=25, **({"init": "matrix"} if nystrom else {}))
    generator = torch.Generator().manual_seed(4)
    noise = torch.randn(3, 2, HEADS, DIM, DIM, generator=generator)
    k = 1.7 * torch.linalg.qr(noise[0])[0]
    q, v = k + 0.1 * noise[1], noise[2]
    with torch.inference_mode():
        out = attention(q, k, v, Window(4, 4))
    assert relative_error(out, exact(q, k, v)) < 1e-4


@pytest.mark.parametrize("height, width", ((8, 32), (9, 13), (16, 4)))
def test_windows_need_not_be_square(attention, height, width):
    reason = attention.refuses(height, width)
    if reason is not None:
        assert isinstance(reason, str) and reason
        pytest.skip("refused")
    q, k, v = random_qkv(2, HEADS, height * width, DIM)
    with torch.inference_mode():
        window = Window(height, width)
        matrix, out = attention.matrix(q, k, window), attention(q, k, v, window)
    assert out.isfinite().all() and matrix.isfinite().all()
    if attention.linear_in_values:
        assert relative_error(out, matrix.double() @ v.double()) < 1e-4


def test_exact_methods_equal_the_float64_reference(attention, window, qkv):
    q, k, v = qkv
    if not attention.exact:
        pytest.skip("an approximation")
    assert attention.uses_bias and attention.uses_mask
    with torch.inference_mode():
        out, matrix = attention(q, k, v, window), attention.matrix(q, k, window)
    assert relative_error(out, exact(q, k, v, window.bias(), window.regions())) < 1e-5
    torch.testing.assert_close(matrix.sum(-1), torch.ones(matrix.shape[:-1]))


@pytest.mark.parametrize("ingredient", ("bias", "mask"))
def test_bias_and_mask_matter_exactly_where_the_method_says_so(attention, window, side, qkv, ingredient):
    """A method that does not use one never even asks for it."""

    def untouchable():
        raise AssertionError(f"{type(attention).__name__} says uses_{ingredient} = False, and asks for it")

    uses = {"bias": attention.uses_bias, "mask": attention.uses_mask}
    makers = {"bias": window.bias, "mask": window.regions}
    makers = {name: maker if uses[name] else untouchable for name, maker in makers.items()}
    full = Window(side, side, makers["bias"], makers["mask"])
    makers[ingredient] = None
    without = Window(side, side, makers["bias"], makers["mask"])
    with torch.inference_mode():
        plain, given = attention(*qkv, without), attention(*qkv, full)
    if uses[ingredient]:
        assert relative_error(given, plain) > 1e-3
    else:
        assert torch.equal(given, plain)


@pytest.mark.parametrize("dim_v", (DIM, 5))
def test_flops_are_those_that_torch_counts(attention, window, side, dim_v):
    """torch 2.13 has no count for the CPU's fused kernel and for products added in place; here they are counted.

    A mask may cost a little more, since a method may carry it as features, or less, since one may attend each region as
    a window of its own: here one window of three is cut in two.
    """
    counted = {masked: _counted_flops(attention, window, side, dim_v, masked) for masked in (False, True)}
    said = attention.flops(IMAGES * WINDOWS, HEADS, side * side, DIM, dim_v)
    assert said == counted[False]
    assert 2 / 3 * said <= counted[True] <= 1.1 * said


def _counted_flops(attention, window, side, dim_v, masked):
    window = Window(side, side, window.bias, window.regions if masked else None)
    tokens = side * side
    q, k, v = random_qkv(IMAGES * WINDOWS, HEADS, tokens, DIM, dim_v)
    aten = torch.ops.aten
    fused = aten._scaled_dot_product_flash_attention_for_cpu
    mapping: dict[Any, Any] = {fused: _fused_flops, aten.baddbmm_: _added_flops}
    with torch.inference_mode(), FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        attention(q, k, v, window)
    return counter.get_total_flops()


def _fused_flops(q, k, v, *args, out_shape=None, **kwargs) -> int:
    batch, heads, queries, dim = q
    return 2 * batch * heads * queries * k[-2] * (dim + v[-1])


def _added_flops(added, left, right, *args, out_shape=None, **kwargs) -> int:
    batch, rows, columns = added
    return 2 * batch * rows * columns * left[-1]


def test_method_has_nothing_to_load(attention):
    assert list(attention.parameters()) == []
    assert attention.state_dict() == {}


def test_class_declares_what_it_is(attention):
    assert isinstance(attention, Attention)
    assert isinstance(attention.version, str) and attention.version
    assert all(isinstance(flag, bool) for flag in (attention.exact, attention.uses_bias, attention.uses_mask))
    assert attention.uses_bias or not attention.folds_bias
    assert set(attention.uses().values()) <= {"used", "folded", "ignored"}
    assert type(attention).__doc__ != Attention.__doc__ and type(attention).__doc__


def test_inputs_are_left_as_they_were(attention, window, qkv):
    before = [t.clone() for t in qkv]
    bias, regions = window.bias().clone(), window.regions().clone()
    with torch.inference_mode():
        attention(*qkv, window)
        attention.matrix(*qkv[:2], window)
    assert all(torch.equal(a, b) for a, b in zip(qkv, before, strict=True))
    assert torch.equal(window.bias(), bias) and torch.equal(window.regions(), regions)


def test_same_input_gives_the_same_output_in_each_call_and_in_a_second_instance(attention, window, qkv, subject):
    with torch.inference_mode():
        first, second = attention(*qkv, window), attention(*qkv, window)
        other = make(subject)(*qkv, Window(window.height, window.width, window.bias, window.regions))
    torch.testing.assert_close(second, first, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(other, first, rtol=1e-6, atol=1e-7)


def test_inference_mode_gives_the_same_as_ordinary_mode(attention, window, qkv):
    with torch.inference_mode():
        expected = attention(*qkv, window)
    torch.testing.assert_close(attention(*qkv, window), expected.clone(), rtol=1e-5, atol=1e-6)


def test_inputs_need_not_be_contiguous(attention, window, qkv):
    """Models hand over slices of one permuted (3, B, H, N, d) tensor."""
    permuted = torch.stack(qkv).transpose(2, 3).contiguous().transpose(2, 3)
    assert not permuted[0].is_contiguous()
    with torch.inference_mode():
        torch.testing.assert_close(attention(*permuted, window), attention(*qkv, window), rtol=1e-5, atol=1e-6)


def test_windows_on_a_map_are_attended_as_windows_that_are_cut_out(attention, window, side, qkv):
    """Wherever on the map their tokens lie; queries are scaled by the method then."""
    with torch.inference_mode():
        if not attention.reads_maps(qkv[0], window):
            pytest.skip("windows are cut out for it")
        order = torch.randperm(WINDOWS * side * side, generator=torch.Generator().manual_seed(5))

        def on_map(tokens):
            along = tokens.unflatten(0, (IMAGES, WINDOWS)).transpose(1, 2).flatten(2, 3)
            return torch.empty_like(along).index_copy_(2, order, along)

        q, k, v = qkv
        expected = on_map(attention(0.5 * q, k, v, window))
        places = order.view(WINDOWS, -1).int()
        found = attention.forward_map(*map(on_map, qkv), window, places, 0.5)
    assert found.shape == expected.shape and relative_error(found, expected) < 1e-5


@pytest.mark.parametrize("size", (1, 2, 3, 7, 8, 16, 32))
def test_windows_that_it_refuses_cannot_be_plugged(attention, size):
    if attention.calibration_images:
        pytest.skip("it is fitted to a model before it is plugged in")
    model = torch.nn.Sequential(torch.nn.Linear(1, 1), WindowAttention(size))
    (site,) = attention_sites(model)
    original = site.attention
    reason = attention.refuses(size, size)
    if reason is None:
        assert plug(model, attention) is model
        assert site.attention is attention
    else:
        assert isinstance(reason, str) and reason and "\n" not in reason
        with pytest.raises(ValueError) as error:
            plug(model, attention)
        assert reason in str(error.value)
        assert site.attention is original


@pytest.mark.parametrize("size", (1, 2, 3, 7, 8, 16))
def test_windows_that_it_does_not_refuse_do_work(attention, size):
    if attention.refuses(size, size) is not None:
        pytest.skip("refused")
    q, k, v = random_qkv(2, HEADS, size * size, DIM)
    with torch.inference_mode():
        assert attention(q, k, v, Window(size, size)).isfinite().all()
