"""The course's tool: authoring, sandbox, grading and reporting (console command `attn`)."""


class CourseError(Exception):
    """What stops a command: the message names file, place and remedy, and is all that a user gets to read."""
