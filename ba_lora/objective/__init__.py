"""The paper's mathematics in pure torch: regularizers, their schedules, and the objective in dense and chunked form."""
