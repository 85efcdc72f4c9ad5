"""What cooks see of a kitchen, and what people see."""
