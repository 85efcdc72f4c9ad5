"""What a planner with a critic would say, taught to its language model, which then says so by itself."""
