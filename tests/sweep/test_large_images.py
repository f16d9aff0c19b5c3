"""Images too large for the memory: tiles, or a refusal that names the gigabytes, before the system kills."""

import pytest
import torch
from PIL import Image

from nystra_bench.instruments import memory
from nystra_bench.instruments.memory_guard import MemoryGuard
from nystra_bench.models.swinir import SwinIR, SwinIRSpec


@pytest.fixture
def large(tmp_path):
    folder = tmp_path / "large"
    folder.mkdir()
    Image.linear_gradient("L").resize((150, 130)).convert("RGB").save(folder / "gradient.png")
    return f"task.images={folder}"


def test_tiles_are_measured_and_stated(bench, looked_at_here, large):
    words = [large, "task.crop=null", "attention=exact", "window_size=native", "position_bias=native", "figures=[]"]
    words += ["metrics=[psnr,deviation_psnr]"]
    assert bench(*words, "name=whole").code == 0
    assert bench(*words, "name=tiles", "tile=64", "tile_overlap=16").code == 0
    whole, tiles = bench.table("whole").iloc[0], bench.table("tiles").iloc[0]
    assert "tile=64 tile_overlap=16" in tiles.task_parameters and "tile" not in whole.task_parameters
    assert tiles.psnr == pytest.approx(whole.psnr, abs=0.5) and tiles.psnr != whole.psnr
    assert tiles.peak_memory_mb < whole.peak_memory_mb
    assert tiles.gflops > whole.gflops  # the overlaps are restored twice
    assert tiles.latency_ms > 0


@pytest.mark.parametrize(
    ("word", "said"), [("tile=32", "from 64 on"), ("tile=x", "from 64 on"), ("tile_overlap=40", "half of tile=64")]
)
def test_tiles_out_of_range_are_refused(bench, looked_at_here, word, said):
    outcome = bench(*dict.fromkeys(["tile=64", word][word.startswith("tile=") :]))
    assert outcome.code == 1
    assert word.split("=")[0] in outcome.sentence and said in outcome.sentence


def guarded(sizes, tile=None) -> tuple[MemoryGuard, SwinIR]:
    """The guard of a small model and a task with images of these sizes."""
    model = SwinIR(SwinIRSpec(dim=8, depths=(2,), heads=(2,), window=8, mlp_ratio=1.0)).eval()

    @torch.inference_mode()
    def forward(model, x):
        return model(x)

    return MemoryGuard(sizes, 3, tile, "cpu", torch.float32, forward), model


@pytest.mark.skipif(not memory.tells_residence("cpu"), reason="the system does not tell resident memory")
def test_an_image_of_100_megapixels_is_refused_with_the_memory_that_it_needs(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 8e9)
    guard, model = guarded([(64, 64), (10_000, 10_000)])
    with pytest.raises(MemoryError, match=r"10000x10000 pixels need about \d+ GB of memory and 8 GB are free.*tile="):
        guard.check(model)


@pytest.mark.skipif(not memory.tells_residence("cpu"), reason="the system does not tell resident memory")
def test_tiles_need_less(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 20e9)
    (whole, model), (tiles, _) = guarded([(10_000, 10_000)]), guarded([(10_000, 10_000)], tile=512)
    with pytest.raises(MemoryError):
        whole.check(model)
    assert tiles.check(model) is True


def test_small_images_are_not_probed(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 1.0)
    guard, model = guarded([(512, 512)])
    monkeypatch.setattr(guard, "bytes_per_pixel", None)
    assert guard.check(model) is False


def test_free_memory_is_that_of_the_machine_or_of_its_control_group(monkeypatch, tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    4000 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    monkeypatch.setattr(memory, "kept_memory", lambda: 0.0)
    assert memory.free_memory("cpu") == 4_096_000
    files = {"memory.max": "3000000", "memory.current": "2500000", "memory.stat": "anon 1\nfile 500000"}
    for name, text in files.items():
        (tmp_path / name).write_text(text + "\n")
    assert memory.free_memory("cpu") == 1_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_memory("cpu") == 4_096_000
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "nowhere")
    assert memory.free_memory("cpu") is None
