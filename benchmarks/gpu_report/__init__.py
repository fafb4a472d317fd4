"""The first hour on a GPU in one command: `make gpu-report`, or `PYTHONPATH=.:benchmarks python -m gpu_report`."""
