"""Where the sessions of a sweep run: one class and one file ``configs/executor/<name>.yaml`` for each way."""
