"""The methods, one a file, each as its paper or code defines it."""
