"""The acts that fill a run folder, a file each: finetune, compress, export need torch; build, bench, predict do not."""
