"""The page: several models answer the same question side by side."""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # Gradio reads this when it is imported.
# Gradio would keep its events and sum them up with pandas after each one, for a dashboard that this page does not have.
os.environ["GRADIO_ANALYTICS_MAX_EVENTS"] = "1"
os.environ["GRADIO_ANALYTICS_CACHE_FREQUENCY"] = str(10**9)
