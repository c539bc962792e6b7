"""Where tensors live, on disk and in each framework, and how they get from one to the other."""
