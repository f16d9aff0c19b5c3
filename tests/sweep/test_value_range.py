"""A model trained on values up to 255 whose window does not tell it: its absurd output is said, the option mends it."""

import pytest
from safetensors.torch import load_file, save_file

from nystra_bench.models.checkpoints import resolve

pytestmark = pytest.mark.usefixtures("here")

QUALITY = ["measure=quality", "metrics=[psnr]", "attention=[exact,identity]", "window_size=native"]


@pytest.fixture
def up_to_255(tmp_path):
    """The bundled denoiser as it would be had it been trained on values up to 255: equal where it is told so."""
    state = load_file(resolve("swinir_denoise_w8"))
    state["conv_first.weight"] /= 255
    for name in ("conv_last.weight", "conv_last.bias"):
        state[name] *= 255
    save_file(state, tmp_path / "wide.safetensors")
    return tmp_path / "wide.safetensors"


def test_an_absurd_output_is_told_and_the_option_mends_it(bench, up_to_255):
    words = [*QUALITY, f"model.weights={up_to_255}", "position_bias=native", "task.limit=1"]
    outcome = bench(*words)
    assert outcome.code == 0
    said = "the output of the model as released is farther from the clean image"
    assert said in outcome.err and "(model.image_range)" in outcome.err
    table = bench.table().set_index("attention")
    assert table.at["exact", "psnr"] < table.at["exact", "input_psnr"] - 3
    assert said in table.at["exact", "reason"] and table.at["exact", "status"] == "done"

    outcome = bench(*words, "model.image_range=255")
    assert outcome.code == 0 and said not in outcome.err
    mended = bench.table().set_index("attention")
    assert mended.at["exact", "psnr"] > mended.at["exact", "input_psnr"] + 3
    assert bench(*QUALITY, "model.weights=swinir_denoise_w8", "position_bias=native", "task.limit=1").code == 0
    bundled = bench.table().set_index("attention")
    assert mended.at["exact", "psnr"] == pytest.approx(bundled.at["exact", "psnr"], abs=0.01)
