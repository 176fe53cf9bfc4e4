"""Networks, the tasks they are trained on, training, and trained weights. Imports neither `bench` nor `backends`."""


class NetworkError(ValueError):
    """A network description that is malformed, damaged or inconsistent."""
