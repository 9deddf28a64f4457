"""The course's tool: authoring, sandbox, grading and reporting (console command `attn`)."""
