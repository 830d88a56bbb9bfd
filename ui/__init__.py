"""The room where people look at runs and judge them: FastAPI and Gradio over the project's Store. Thin."""
