"""Host half: one training loop for fine-tuning, recovery after pruning, distillation and QAT."""
