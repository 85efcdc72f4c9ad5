"""Plans that a critic accepts, taught to its language model, which then makes them by itself."""
