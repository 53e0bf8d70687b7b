"""What is made of evaluations: detection of noise, significance."""
