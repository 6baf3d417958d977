"""Host half: from a folder of labelled pictures to honest splits, prepared sets and training batches."""
