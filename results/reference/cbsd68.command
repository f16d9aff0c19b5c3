# The run of cbsd68.csv, for python -m nystra_bench.verify; the 68 clean images are in a folder called gt, which
# task.images=FOLDER/gt behind the command names (python -m nystra_bench.fetch cbsd68 fetches the same images).
+sweep=denoise model=[swinir_denoise_w8,swinir_denoise_w16,uformer_denoise] position_bias=native attention=exact
measure=quality metrics=[psnr,ssim] task.images=CBSD68/gt task.limit=null task.crop=null
