"""Whole runs: what fails is a row with its reason, the rest is measured, and nothing is measured twice."""

import subprocess

import pytest


def test_failures_are_rows_and_the_next_run_tries_them_again(bench, tmp_path):
    names = ["exact", "raising", "exhausting", "killing", "sleeping", "nystra"]
    cured = tmp_path / "cured"
    words = [f"attention=[{','.join(names)}]", f"attention.cured={cured}", "window_size=native", "measure=[quality]"]
    words += ["position_bias=native", "attention.landmarks=4", "timeout_s=15", "figures=[]"]

    first = bench(*words)
    assert first.code == 2
    table = bench.table().set_index("attention")
    statuses = {"raising": "failed", "exhausting": "oom", "killing": "crashed", "sleeping": "timeout"}
    assert {name: table.status[name] for name in statuses} == statuses
    assert table.status["exact"] == "done"
    assert table.status["nystra"] == "done"
    assert table.reason["raising"] == "ArithmeticError: no luck"
    assert "SIGKILL" in table.reason["killing"]
    assert "timeout_s" in table.reason["sleeping"]
    (raised,) = (f for f in bench.stored("failure") if f["status"] == "failed")
    assert "misbehave" in raised["traceback"]
    assert "with details" in (bench.results / "tiny" / "nystra_bench.log").read_text()
    measured = {r["key"]: r["finished"] for r in bench.stored()}
    assert len(measured) == 2

    cured.touch()
    second = bench(*words)
    assert second.code == 0
    assert "4 to measure" in second.out
    assert set(bench.table().status) == {"done"}
    assert measured.items() <= {r["key"]: r["finished"] for r in bench.stored()}.items()
    assert not bench.stored("failure")

    plan = bench(*words, "mode=plan")
    assert plan.out.splitlines()[-1].endswith("6 cells: 6 done; 0 to measure")


def test_a_reason_with_bytes_that_are_no_text_does_not_end_the_run(bench, looked_at_here):
    words = ["attention=[garbling,identity]", "position_bias=native", "measure=[quality]", "figures=[]"]
    assert bench(*words).code == 2
    table = bench.table().set_index("attention")
    assert table.reason["garbling"] == "OSError: no file caf\\udce4.png"
    assert table.status["identity"] == "done"
    plan = bench(*words, "mode=plan")
    assert plan.code == 0
    assert "(OSError: no file caf\\udce4.png)" in plan.out


def test_what_is_made_once_is_timed_apart_and_what_becomes_of_the_bias_is_shown(bench, looked_at_here):
    words = ["attention=[nystra,nystra_plus]", "attention.landmarks=4", "position_bias=native", "figures=[]"]
    assert bench(*words, "measure=latency").code == 0
    values = {r["cell"]["attention"]["name"]: r["value"] for r in bench.stored()}
    assert values["nystra"]["setup_ms"] is None
    assert 0 < values["nystra_plus"]["setup_ms"] < values["nystra_plus"]["first_ms"]
    table = bench.table().set_index("attention")
    assert list(table.loc["nystra", ["bias_use", "mask_use"]]) == ["ignored", "ignored"]
    assert list(table.loc["nystra_plus", ["bias_use", "mask_use"]]) == ["folded", "used"]
    assert table.loc["nystra_plus", "setup_ms"] == pytest.approx(values["nystra_plus"]["setup_ms"])
    assert "set-up (ms)" in (bench.results / "tiny" / "table.md").read_text()


def test_timings_and_memory_go_on_without_what_fails(bench, looked_at_here):
    words = ["attention=[raising,killing,nystra]", "attention.landmarks=4", "position_bias=native", "figures=[]"]
    assert bench(*words, "measure=[latency,memory]").code == 2
    values = {(r["cell"]["attention"]["name"], r["cell"]["measure"]["name"]): r["value"] for r in bench.stored()}
    assert set(values) == {("nystra", "latency"), ("nystra", "memory")}
    timed = values["nystra", "latency"]
    assert set(timed["companions"]) == {"exact", "exact_again", "sdpa", "identity"}
    assert {len(samples) for samples in timed["companions"].values()} == {len(timed["samples_ms"])}
    assert min(timed["samples_ms"]) > 0
    assert 0 < values["nystra", "memory"]["attention_gflops"] < values["nystra", "memory"]["gflops"]
    failed = [(f["cell"], f["status"]) for f in bench.stored("failure")]
    statuses = {(cell["attention"]["name"], cell["measure"]["name"]): status for cell, status in failed}
    assert statuses == {
        ("raising", "latency"): "failed",
        ("raising", "memory"): "failed",
        ("killing", "latency"): "crashed",
        ("killing", "memory"): "crashed",
    }


@pytest.fixture
def finished(bench):
    outcome = bench("figures=[]")
    assert outcome.code == 0, outcome.err
    return bench


def test_a_second_run_starts_no_worker(finished, monkeypatch):
    before = {file: file.stat().st_mtime_ns for file in finished.results.glob("store/*/*")}
    started = []
    popen = subprocess.Popen

    def watched(command, *arguments, **more):
        started.append(command)
        return popen(command, *arguments, **more)

    monkeypatch.setattr(subprocess, "Popen", watched)
    again = finished("figures=[]")
    assert again.code == 0
    assert "0 to measure" in again.out
    assert not [command for command in started if "nystra_bench.sweep.worker" in command]
    assert [command for command in started if "nystra_bench.sweep.inspection" in command]
    assert before == {file: file.stat().st_mtime_ns for file in finished.results.glob("store/*/*")}

    rows = finished.table()
    assert len(rows) == 4
    native = rows[rows.bias == "native"]
    assert native[native.attention == "exact"].deviation_psnr.item() == float("inf")
    assert native[native.attention == "exact"].native_deviation_psnr.item() == float("inf")
    assert (native[native.attention == "nystra"].deviation_rms > 0).all()
    enlarged = rows[rows.bias == "drop"]
    assert enlarged.deviation_psnr.item() == float("inf")
    assert 0 < enlarged.native_deviation_psnr.item() < 200
    assert (rows.input_psnr > 0).all()
    assert set(rows.model) == {"tiny"}
    # A measured cell that is unstable is measured again only where that is asked for.
    unstable = [r["key"] for r in finished.stored() if r["status"] == "unstable"]
    assert f"{len(unstable)} to measure" in finished("mode=plan", "retry=[unstable]").out


def test_a_calibrated_method_is_fitted_in_every_session_and_says_how(bench, looked_at_here):
    words = ["attention=[nystra_plus]", "attention.target_deviation=20", "position_bias=native", "figures=[]"]
    assert bench(*words, "measure=[latency,quality]").code == 0
    records = [r["value"]["calibration"] for r in bench.stored()]
    assert len(records) == 2
    assert records[0]["layers"] == records[1]["layers"]
    assert all(r["target_deviation"] == 20 and r["images"] for r in records)
    assert all(r["deviation"] is None or r["deviation"] >= 20 for r in records)
