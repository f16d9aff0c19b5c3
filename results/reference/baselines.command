# The run of baselines.csv, for python -m nystra_bench.verify
+sweep=baselines task.limit=5
