"""The paper's mathematics in pure torch: the regularizers, their schedules, and the objective in its dense and chunked form."""
