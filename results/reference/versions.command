# The run of versions.csv, for python -m nystra_bench.verify: all of the sweep but version 5, which is in versions_5.5.csv. Fetch first:
# python -m nystra_bench.fetch dat-light-x2 fiwhn-x4 dehazeformer-t-outdoor
+sweep=versions attention=[sdpa,identity,nystra_plus,nystra_plus_fused,avggt,fna,pisa,thinformer,wildcat]
