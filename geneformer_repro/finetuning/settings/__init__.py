"""How each workflow of fine-tuning is configured, one file a kind of row, without torch.

A configuration is made, with all its bounds, in half a second, where what it configures takes eight to load: so the
command line tells what is wrong in it before anything else. `splits`, `labels` and `networks` hold what several have.
"""
