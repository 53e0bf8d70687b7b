"""What RecBole's own functions learn of this package once it is imported."""
