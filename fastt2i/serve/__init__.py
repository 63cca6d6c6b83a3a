"""A web page and an interface for programs around one trained model.

The page is one of our own behind FastAPI, and not Gradio's: it draws over the images where each keyword looks, asks
what programs ask, and needs no script, style or font from elsewhere, which its policy forbids and a test sees to.
"""
