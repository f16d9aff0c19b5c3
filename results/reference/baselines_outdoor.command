# The run of baselines_outdoor.csv, for python -m nystra_bench.verify: the released DehazeFormer-T (outdoor) on pairs of SOTS outdoor, in
# the folder SOTS/outdoor. Where they lie elsewhere: model.weights=FILE task.root=FOLDER/outdoor behind the command.
+sweep=baselines model=dehazeformer model.weights=dehazeformer-t.pth task=dehaze_pairs task.root=SOTS/outdoor
window_size=[16,32]
