# The run of set5.csv, for python -m nystra_bench.verify; Set5 by python -m nystra_bench.fetch set5.
# Where it lies elsewhere: task.images=FOLDER/HR behind the command.
+sweep=super_resolution model=swinir_x2 task=set5 position_bias=native attention=exact measure=quality metrics=[psnr,ssim]
task.limit=null task.crop=null
