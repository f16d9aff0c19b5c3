# The run of baselines_outdoor.csv, for python -m nystra_bench.verify: the released DehazeFormer-T (outdoor) on pairs of SOTS outdoor, in
# the folders SOTS_outdoor/lq and SOTS_outdoor/gt. Where they lie elsewhere: model.weights=FILE task.root=FOLDER/SOTS_outdoor behind the command.
+sweep=baselines model=dehazeformer model.weights=dehazeformer-t.pth task=dehaze_pairs task.root=SOTS_outdoor task.degraded=lq
window_size=[16,32]
