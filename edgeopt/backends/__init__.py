"""Runtimes that build and run engines: one file each, listed by name in ``edgeopt.registry``."""
