"""Fuzzing: what comes from strangers is read, whatever it holds, with success or an EdgeoptError."""
