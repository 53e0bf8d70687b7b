"""The commands of ``recbole-guider``: arguments in, one call, clear errors."""
