"""What a package for a device is made of: ``predict.py`` (:mod:`.standalone`), a C++ example, a README."""
