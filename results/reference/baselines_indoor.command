# The run of baselines_indoor.csv, for python -m nystra_bench.verify: the released DehazeFormer-T (outdoor) on pairs of SOTS indoor, in
# the folders SOTS_indoor/lq and SOTS_indoor/gt. Where they lie elsewhere: model.weights=FILE task.root=FOLDER/SOTS_indoor behind the command.
+sweep=baselines model=dehazeformer model.weights=dehazeformer-t.pth task=dehaze_pairs task.root=SOTS_indoor task.degraded=lq
window_size=[16,32]
