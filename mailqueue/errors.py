"""What the queue says when it can't. Exceptions of the Redis client stop at this package's gate (:mod:`scripts`)."""


class QueueRefused(Exception):
    """The server is not one that may hold mail; the text says which setting to change and to what."""


class QueueDown(Exception):
    """No answer in time. A put that ends so is void: should it have been carried out, it is taken back."""


class LeaseLost(Exception):
    """This worker was silent too long; its items went back to the queue."""


class ServerAnswer(Exception):
    """The server answered with an error that no repetition mends; the text is its own."""
