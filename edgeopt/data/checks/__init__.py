"""What is wrong with a set of pictures: one module a kind of check, each returning issues, worst first."""
