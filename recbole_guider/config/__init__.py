"""From what the user wrote to one checked RecBole ``Config``."""
