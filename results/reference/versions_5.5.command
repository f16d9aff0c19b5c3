# The run of versions_5.5.csv, for python -m nystra_bench.verify. Fetch first:
# python -m nystra_bench.fetch dat-light-x2 fiwhn-x4 dehazeformer-t-outdoor
+sweep=versions attention=[sdpa,identity,nystra_plus_fused,nystra_plus_v5,nystra_plus_v5_fused]
