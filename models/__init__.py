"""Networks, the tasks they are trained on, training, and trained weights. Imports neither `bench` nor `backends`."""
