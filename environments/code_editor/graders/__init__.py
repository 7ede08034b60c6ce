"""The graders of the code editor: by hidden calls, by a test program, or by a pytest suite."""
