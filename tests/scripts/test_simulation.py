"""The simulation of a large sweep goes the command's own way, from the plan to the report."""

from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest
from script_modules import FOLDER, script

from nystra_bench.cli import main

simulation = script("simulate_cluster")


def test_a_small_one_is_planned_run_and_reported(tmp_path, capsys, monkeypatch):
    simulation.write_plugins(tmp_path / "plugins", cells=200, jobs=20)
    words = ["+sweep=simulated", f"plugins=['{tmp_path / 'plugins'}','{FOLDER / 'simulated'}']", "executor=simulated"]
    words += [f"results={tmp_path / 'results'}"]
    assert main([*words, "mode=plan"]) == 0
    *_, jobs, cells = capsys.readouterr().out.splitlines()
    assert cells == "simulated: 200 cells: 200 missing; 200 to measure"
    assert jobs.startswith("20 jobs, at most 200 at a time: no estimate; 200 cells are like none that is measured")
    import simulated_executor

    monkeypatch.setattr(simulated_executor, "ProcessPoolExecutor", ThreadPoolExecutor)
    assert main(words) == 0
    table = pd.read_csv(tmp_path / "results" / "simulated" / "table.csv")
    assert len(table) == 200 and set(table["status"]) == {"done"} and table["psnr"].between(20, 50).all()


def test_too_few_cells_for_the_jobs_are_refused(tmp_path):
    with pytest.raises(SystemExit, match="ten times as many --cells"):
        simulation.write_plugins(tmp_path, cells=100, jobs=20)
