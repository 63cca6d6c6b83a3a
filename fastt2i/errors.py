"""The one exception that stands for a mistake of the user's, told in one sentence."""


class UserError(Exception):
    """Something the user can put right: the message says what is wrong, where, and what would be right.

    The command-line programs print the message alone, without a traceback, and exit with status 2.
    """
